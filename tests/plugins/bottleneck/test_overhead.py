"""What `hasten` adds to a low step, as a share of a full-resolution forward.

Run as a script it prints the figures of docs/benchmarks/bottleneck.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import hasten

LIMIT = 0.03
SIDE = 64
"""Latent pixels a side: 1,024 tokens of 2 x 2."""
STEPS = 8


class Free(nn.Module):
    """A denoiser that costs nothing, with the signature and configuration of a real one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        timestep: Tensor | None = None,
        joint_attention_kwargs: Any = None,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states),)


def medium() -> Any:
    """A Stable Diffusion 3 transformer of 65 million parameters with random weights."""
    return diffusers.SD3Transformer2DModel(
        sample_size=SIDE,
        num_layers=6,
        num_attention_heads=12,
        caption_projection_dim=768,
        joint_attention_dim=512,
        pooled_projection_dim=512,
        pos_embed_max_size=SIDE,
    ).eval()


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median processor time, which other programs on the machine do not disturb much."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return median(times)


def measure() -> tuple[float, float]:
    """Processor seconds that a low step adds, and those of a full-resolution forward."""
    model = medium()
    text = {"encoder_hidden_states": torch.randn(1, 77, 512), "pooled_projections": torch.randn(1, 512)}
    given = {"hidden_states": torch.randn(1, 16, SIDE, SIDE), "timestep": torch.full((1,), 800.0), **text}
    with torch.no_grad():
        forward = cpu_seconds(lambda: model(**given), 3)
    parts = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.StableDiffusion3Pipeline(transformer=model, scheduler=scheduler, vae=None, **parts)
    pipe.set_progress_bar_config(disable=True)
    config = SimpleNamespace(**model.config)
    vars(pipe)["transformer"] = Free(config)
    call = {
        "prompt_embeds": text["encoder_hidden_states"],
        "pooled_prompt_embeds": text["pooled_projections"],
        "guidance_scale": 1.0,
        "num_inference_steps": STEPS,
        "height": SIDE * 8,
        "width": SIDE * 8,
        "output_type": "latent",
    }
    stock = cpu_seconds(lambda: pipe(**call), 9)
    with hasten.accelerate(
        pipe, {"bottleneck": {"low_until": 0.001, "high_first": 1.0, "min_pixels": 1}}
    ) as acceleration:
        accelerated = cpu_seconds(lambda: pipe(**call), 9)
        assert {step.resolution for step in acceleration.report().steps} == {(SIDE // 2, SIDE // 2)}
    return (accelerated - stock) / STEPS, forward


@pytest.mark.slow
def test_the_wrapper_costs_at_most_three_per_cent_of_a_full_step():
    wrapper, forward = measure()
    assert wrapper <= LIMIT * forward, f"{wrapper * 1e3:.2f} ms of {forward * 1e3:.1f} ms"


if __name__ == "__main__":
    wrapper, forward = measure()
    sys.stdout.write(
        f"a low step adds {wrapper * 1e3:.2f} ms to {forward * 1e3:.0f} ms of a full forward: {wrapper / forward:.2%}\n"
    )
