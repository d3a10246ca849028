from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from hasten._cli import build_app

PROMPT = "a large red circle on the left on a white background"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained StableDiffusion3Pipeline with text encoders, in diffusers layout."""
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    from hasten_miniatures.autoencoder import build_autoencoder
    from hasten_miniatures.contrastive import build_clip
    from hasten_miniatures.t2i_dit import assemble

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=192,
            pooled_projection_dim=192,
            pos_embed_max_size=32,
        )
        tower = CLIPTextModelWithProjection(build_clip().config.text_config)
        pipe = assemble(build_autoencoder(), tower, transformer, 128)
    path = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def hasten() -> Callable[..., Result]:
    """Run the command line in this process: ``hasten("plugins", "--json")``."""

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])

    return run
