"""Seconds a picture of a pipeline in the shape of FLUX.1 with random weights: plain, accelerated and compiled.

    python docs/benchmarks/gpu_flux.py --steps 28
    python docs/benchmarks/gpu_flux.py --device cpu --tiny --steps 8 --rounds 1

Time does not depend on the values of weights, so quality is not what this measures. Variants are timed in turns, and
the ratio to the plain pipeline is paired by round. A variant that fails is reported with its error; the others go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

import hasten
from hasten.commands import describe_machine
from hasten.eval.efficiency.timing import interleave
from hasten.extend import Pipeline

LOW = {"spectrum": [0.2, 1.6], "min_pixels": 1}
"""Options of ``bottleneck``; the spectrum is a placeholder, since random weights have none."""
VARIANTS: dict[str, dict[str, Any]] = {
    "bottleneck": {"bottleneck": LOW},
    "cache": {"cache": {"kind": "taylorseer"}},
    "rettention": {"rettention": {"keep_ratio": 0.125}},
    "bottleneck + rettention": {
        "bottleneck": LOW,
        "rettention": {"keep_ratio": 0.125},
    },
    "bottleneck + cache": {"bottleneck": LOW, "cache": {"kind": "taylorseer"}},
}
"""Name of a variant -> techniques."""
COMPILED = ("bottleneck",)
"""Variants that are run on a compiled transformer, too."""


def make_pipe(tiny: bool, device: str, dtype: torch.dtype, layers: int | None) -> Any:
    """A FluxPipeline with random weights, an autoencoder that is next to nothing, and no text encoders."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )

    full = {} if layers is None else {"num_layers": layers, "num_single_layers": 2 * layers}
    small = {
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    }
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            transformer = FluxTransformer2DModel(guidance_embeds=True, **(small if tiny else full))
        finally:
            torch.set_default_dtype(default)
        vae = AutoencoderKL(
            latent_channels=16,
            block_out_channels=(8,) * 4,
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).to(dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = FluxPipeline(scheduler, vae, None, None, None, None, transformer.eval().requires_grad_(False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(pipe: Pipeline, side: int, steps: int, text: int) -> dict[str, Any]:
    """Arguments of a call that encodes no text and decodes nothing."""
    config, dtype = pipe.transformer.config, pipe.transformer.dtype
    make = torch.Generator().manual_seed(0)
    words = torch.randn(1, text, config.joint_attention_dim, generator=make)
    pooled = torch.randn(1, config.pooled_projection_dim, generator=make)
    return {
        "prompt_embeds": words.to(pipe.device, dtype),
        "pooled_prompt_embeds": pooled.to(pipe.device, dtype),
        "height": side,
        "width": side,
        "num_inference_steps": steps,
        "output_type": "latent",
    }


def caller(pipe: Pipeline, call: dict[str, Any], options: dict[str, Any] | None) -> Callable[[], Any]:
    """A function that makes one picture."""

    def run() -> Any:
        generator = torch.Generator().manual_seed(1)
        if options is None:
            return pipe(**call, generator=generator).images
        with hasten.accelerate(pipe, options):
            return pipe(**call, generator=generator).images

    return run


def measured(
    pipe: Pipeline, call: dict[str, Any], variants: dict[str, dict[str, Any] | None], rounds: int, prefix: str
) -> list[dict[str, Any]]:
    """Rows of the variants that run, compared with the first, and the errors of those that do not."""
    tasks, rows = {}, []
    for name, options in variants.items():
        run = caller(pipe, call, options)
        try:
            finite = bool(torch.isfinite(run().float()).all())
        except Exception as error:  # one failure must not lose the others
            rows.append({"variant": prefix + name, "error": f"{type(error).__name__}: {error}"})
            sys.stderr.write(traceback.format_exc())
            continue
        rows.append({"variant": prefix + name, "finite": finite})
        tasks[name] = run
    times = interleave(tasks, rounds, warmup=1, device=pipe.device)
    first = next(iter(tasks))
    for row in rows:
        name = row["variant"].removeprefix(prefix)
        if name in tasks:
            ratio = times.ratio(first, name)
            row |= {"seconds": times.median(name), "times_as_fast": [ratio.value, ratio.low, ratio.high]}
    return rows


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--side", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--layers", type=int, help="double-stream blocks instead of 19, and twice as many others"
    )
    parser.add_argument("--tiny", action="store_true", help="a model of a few kilobytes, to try the script")
    parser.add_argument("--compile", action="store_true", help="measure the compiled transformer, too")
    options = parser.parse_args()
    pipe = make_pipe(options.tiny, options.device, getattr(torch, options.dtype), options.layers).to(
        options.device
    )
    call = arguments(pipe, options.side, options.steps, 512)
    with torch.no_grad():
        rows = measured(pipe, call, {"plain": None, **VARIANTS}, options.rounds, "")
        if options.compile:
            pipe.transformer.compile()
            variants = {"plain": None, **{name: VARIANTS[name] for name in COMPILED}}
            rows += measured(pipe, call, variants, options.rounds, "compiled: ")
    sys.stdout.write(json.dumps({"machine": describe_machine(), **vars(options), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
