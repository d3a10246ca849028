"""Measures Video-Infinity on this machine, writes ``video_infinity.json`` beside this file, and prints a table.

    torchrun --nproc-per-node 2 docs/benchmarks/video_infinity.py

Every repetition times, one after another: the whole video in one process; the two halves in two processes that do not
talk (the ceiling); the whole video in two processes. Rates are ratios within one repetition, so that a machine that
changes its speed in between does not count; the median of the repetitions is reported.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import torch.distributed as dist

import hasten
from hasten.plugins.video_infinity import divide
from hasten.plugins.video_infinity.cost import Run, fit, predict
from hasten.plugins.video_infinity.processes import Processes, join

OPTIONS: dict[str, Any] = {"halo": 2, "global_frames": 4, "timeout_s": 600.0}
FRAMES = 16
STEPS = 2
REPETITIONS = 5


def make_pipe(kind: str) -> Any:
    """A pipeline with random weights, large enough that arithmetic dominates."""
    torch.manual_seed(0)
    if kind == "transformer":
        denoiser = diffusers.WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=64,
            in_channels=8,
            out_channels=8,
            text_dim=64,
            freq_dim=64,
            ffn_dim=1024,
            num_layers=4,
        ).eval()
        vae = diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=8,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * 8,
            latents_std=[1.0] * 8,
        )
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipe = diffusers.WanPipeline(
            tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=denoiser
        )
    else:
        unet = diffusers.UNet3DConditionModel(
            block_out_channels=(64, 128),
            layers_per_block=1,
            sample_size=16,
            attention_head_dim=16,
            norm_num_groups=16,
            cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ).eval()
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
        )
        pipe = diffusers.TextToVideoSDPipeline(vae, None, None, unet, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(kind: str, frames: int) -> dict[str, Any]:
    """A call that makes ``frames`` latent frames of 16 x 16 tokens."""
    noise = torch.Generator().manual_seed(1)
    call = {
        "prompt_embeds": torch.randn(1, 8, 64, generator=noise),
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "output_type": "latent",
        "return_dict": False,
        "generator": noise,
    }
    if kind == "transformer":
        return {**call, "num_frames": 4 * (frames - 1) + 1, "height": 256, "width": 256}
    return {**call, "num_frames": frames, "height": 48, "width": 48}


def timed(pipe: Any, call: dict[str, Any], options: dict[str, Any]) -> tuple[float, Any]:
    """Seconds of one call, and its session."""
    with hasten.accelerate(pipe, {"video_infinity": options}), divide.keep_local() as sessions:
        began = time.perf_counter()
        pipe(**call)
        return time.perf_counter() - began, sessions[0]


@contextmanager
def apart() -> Any:
    """Runs inside believe that they are alone."""
    with patch.object(divide, "join", lambda *_: Processes()):
        yield


def measure(kind: str, everyone: Processes) -> dict[str, Any]:
    """Strong scaling of one pipeline."""
    pipe = make_pipe(kind)
    whole, half = arguments(kind, FRAMES), arguments(kind, FRAMES // 2)
    rows = []
    for repetition in range(REPETITIONS + 1):
        everyone.gather("one")
        seconds: dict[str, float] = {}
        if everyone.rank == 0:
            with apart():
                seconds["one"] = timed(pipe, whole, {**OPTIONS, "clips": 1})[0]
        everyone.gather("apart")
        with apart():
            alone = timed(pipe, half, {**OPTIONS, "clips": 1})[0]
        seconds["apart"] = max(everyone.gather(alone))
        everyone.gather("together")
        together, session = timed(pipe, whole, OPTIONS)
        seconds["together"] = max(everyone.gather(together))
        traffic = session.exchange.traffic.values()
        seconds["waited"] = sum(t.exposed_milliseconds for t in traffic) / 1e3
        seconds["bytes"] = sum(t.received for t in traffic)
        seconds["rounds"] = sum(t.rounds for t in traffic)
        if repetition and everyone.rank == 0:  # the first one warms up
            rows.append(seconds)
    return {} if everyone.rank else summary(rows)


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of ratios, and of seconds."""

    def middle(value: Any) -> float:
        return statistics.median(value(row) for row in rows)

    return {
        "seconds": {name: middle(lambda r, n=name: r[n]) for name in ("one", "apart", "together")},
        "speed_up": middle(lambda r: r["one"] / r["together"]),
        "ceiling": middle(lambda r: r["one"] / r["apart"]),
        "share_of_ceiling": middle(lambda r: r["apart"] / r["together"]),
        "waiting_share": middle(lambda r: r["waited"] / r["together"]),
        "received_bytes": rows[0]["bytes"],
        "rounds": rows[0]["rounds"],
        "repetitions": len(rows),
    }


def weak(kind: str) -> list[dict[str, float]]:
    """Seconds per clip and peak memory in one process, as clips of equal size are added."""
    pipe = make_pipe(kind)
    rows = []
    for clips in (1, 2, 4, 8):
        call = arguments(kind, clips * FRAMES // 2)
        seconds = [timed(pipe, call, {**OPTIONS, "clips": clips})[0] for _ in range(3)]
        rows.append({"clips": clips, "seconds_per_clip": min(seconds) / clips})
    return rows


def main() -> None:
    """Run everything; rank 0 writes."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    everyone = join(600.0, None, torch.device("cpu"))
    results: dict[str, Any] = {}
    for kind in sys.argv[1:] or ("transformer", "unet"):
        results[kind] = measure(kind, everyone)
        if everyone.rank == 0:
            with apart():
                results[kind]["weak_scaling"] = weak(kind)
        everyone.gather("weak")
    if everyone.rank == 0:
        results["prediction"] = prediction(results["transformer"]) if "transformer" in results else {}
        path = Path(__file__).with_suffix(".json")
        path.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
        sys.stdout.write(path.read_text())
    dist.destroy_process_group()


def prediction(measured: dict[str, Any]) -> dict[str, Any]:
    """What the cost model, fitted to the measured run, says of more processes. Not measured."""
    run = Run(
        ranks=2,
        seconds=measured["seconds"]["together"],
        compute_seconds=measured["seconds"]["apart"],
        rounds=int(measured["rounds"]),
        received=int(measured["received_bytes"]),
    )
    link = fit([run])
    return {"link": vars(link), "efficiency": {ranks: predict(run, ranks, link) for ranks in (2, 8, 16)}}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from hasten._machine import describe_machine

    return {**describe_machine(), "cores": os.cpu_count()}


if __name__ == "__main__":
    main()
