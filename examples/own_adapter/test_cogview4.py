"""The adapter keeps the contract of `hasten.testing`, on a tiny CogView4 with random weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from hasten_cogview4 import ADAPTER

from hasten.testing import AdapterContract


class TestCogView4(AdapterContract):
    adapter = ADAPTER
    arguments: ClassVar = {
        "prompt_embeds": torch.ones(1, 16, 32),
        "negative_prompt_embeds": torch.zeros(1, 16, 32),
        "height": 64,
        "width": 96,
        "num_inference_steps": 3,
    }

    def pipeline(self) -> Any:
        torch.manual_seed(0)
        transformer: Any = CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=4,
        )
        pipe: Any = CogView4Pipeline(
            tokenizer=None,
            text_encoder=None,
            vae=AutoencoderKL(
                block_out_channels=(4,) * 4,
                latent_channels=4,
                norm_num_groups=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            ),
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
