"""An untrained StableDiffusion3Pipeline that makes 32-pixel pictures in milliseconds, and a finished
comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from hasten._cli import build_app
from hasten._config import Config
from hasten._generation import Job
from hasten._plugins import host
from hasten.eval.compare.run import Request
from hasten.pipelines.mini import prompts

BUILT_IN = ("hasten.eval.builtin", "hasten.eval.commands")


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    """Metrics and commands of hasten.eval, wherever the host does not load them by itself."""
    from importlib import import_module

    known = {record.name for record in host().plugins}
    for name in BUILT_IN:
        if name not in known:
            host().register(import_module(name), name)


@pytest.fixture(scope="session")
def pipe() -> Any:
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    from hasten_miniatures.autoencoder import build_autoencoder
    from hasten_miniatures.contrastive import build_clip
    from hasten_miniatures.t2i_dit import assemble

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=8,
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
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline in diffusers layout."""
    path = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(path)
    return path


def make_request(count: int = 4, batch_size: int = 2, seed: int = 0) -> Request:
    call = {"num_inference_steps": 4, "height": 32, "width": 32, "max_sequence_length": 0}
    config = Config.of({"bottleneck": {"low_until": 0.5, "high_first": 1.0}})
    job = Job(tuple(prompts(count)), seed, call, batch_size)
    return Request("untrained", job, {"low resolution": config}, {"low resolution": 2})


@pytest.fixture
def request_of() -> Callable[..., Request]:
    return make_request


@pytest.fixture
def evaluate() -> Callable[..., Result]:
    """``hasten eval`` in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(build_app(), ["eval", *map(str, arguments)])

    return run
