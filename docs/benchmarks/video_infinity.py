"""Measures Video-Infinity on this machine and writes ``video_infinity.json`` beside this file.

    torchrun --nproc-per-node 2 docs/benchmarks/video_infinity.py [transformer] [unet] [peers] [weak]

Every repetition times, one after another: the whole video in one process; the same in both processes at once, each
for itself (the ceiling: twice the work in that time, without a message); the two halves in two processes as if they
were videos of their own; the whole video in two processes together. Rates are ratios within one repetition, so that a
machine that changes its speed in between does not count; the median of the repetitions is reported. Parts that are not
named are kept as they were.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import torch.distributed as dist

import hasten
from hasten.extend import Pipeline
from hasten.plugins.video_infinity import run_handlers
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.cost import MeasuredRun, fit, predict
from hasten.plugins.video_infinity.joining import join
from hasten.plugins.video_infinity.process_mesh import ProcessMesh

OPTIONS: dict[str, Any] = {"halo": 2, "global_frames": 4, "timeout_s": 600.0}
FRAMES = {"transformer": 16, "unet": 48}
"""Latent frames of a video; 24 frames in a process are the paper's."""
STEPS = 1
REPETITIONS = {"transformer": 11, "unet": 5}
KINDS = ("transformer", "unet")


def make_pipe(kind: str) -> Any:
    """A pipeline with random weights: a small Wan, or two levels of a U-Net as wide as the published ones."""
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
            block_out_channels=(320, 640),
            layers_per_block=1,
            sample_size=8,
            attention_head_dim=64,
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
    """A call that makes ``frames`` latent frames, of 16 x 16 tokens (transformer) or 8 x 8 (U-Net)."""
    noise = torch.Generator().manual_seed(1)
    call = {
        "prompt_embeds": torch.randn(1, 8, 64, generator=noise),
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "output_type": "latent",
        "return_dict": False,
    }
    if kind == "transformer":
        return {**call, "num_frames": 4 * (frames - 1) + 1, "height": 256, "width": 256}
    return {**call, "num_frames": frames, "height": 16, "width": 16}


def timed(pipe: Pipeline, call: dict[str, Any], options: dict[str, Any]) -> tuple[float, Any]:
    """Seconds of one call, and its session."""
    with hasten.accelerate(pipe, {"video_infinity": options}), run_handlers.keep_local_latents() as sessions:
        began = time.perf_counter()
        pipe(**call, generator=torch.Generator().manual_seed(0))
        return time.perf_counter() - began, sessions[0]


@contextmanager
def apart() -> Iterator[None]:
    """Runs inside believe that they are alone."""
    with patch.object(run_handlers, "join", lambda *_: ProcessMesh()):
        yield


def measure(kind: str, everyone: ProcessMesh) -> dict[str, Any]:
    """Strong scaling of one pipeline."""
    pipe = make_pipe(kind)
    rows = []
    for _ in range(REPETITIONS[kind] + 1):
        rows.append(repetition(pipe, kind, everyone))
        if everyone.rank == 0:
            sys.stderr.write(f"{kind} {rows[-1]}\n")
    return summary(rows[1:])  # the first one warms up


def repetition(pipe: Pipeline, kind: str, everyone: ProcessMesh) -> dict[str, float]:
    """Seconds of every way of making the video, and what the divided one exchanged."""
    whole, half, alone = (
        arguments(kind, FRAMES[kind]),
        arguments(kind, FRAMES[kind] // 2),
        {**OPTIONS, "clips": 1},
    )
    seconds: dict[str, float] = {}
    everyone.gather("one")
    with apart():
        if everyone.rank == 0:
            seconds["one"] = timed(pipe, whole, alone)[0]
        everyone.gather("both")
        seconds["both"] = max(everyone.gather(timed(pipe, whole, alone)[0]))
        seconds["halves"] = max(everyone.gather(timed(pipe, half, alone)[0]))
    together, session = timed(pipe, whole, OPTIONS)
    seconds["together"] = max(everyone.gather(together))
    traffic = session.exchange.traffic.values()
    seconds["waited"] = sum(t.exposed_milliseconds for t in traffic) / 1e3
    seconds["bytes"] = sum(t.received for t in traffic)
    seconds["rounds"] = sum(t.rounds for t in traffic)
    return {**dict.fromkeys(("one",), 1.0), **seconds}


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of ratios, and of seconds."""

    def middle(value: Any) -> float:
        return statistics.median(value(row) for row in rows)

    shares = sorted(row["both"] / 2 / row["together"] for row in rows)
    return {
        "seconds": {name: middle(lambda r, n=name: r[n]) for name in ("one", "both", "halves", "together")},
        "speed_up": middle(lambda r: r["one"] / r["together"]),
        "ceiling": middle(lambda r: 2 * r["one"] / r["both"]),
        "share_of_ceiling": statistics.median(shares),
        "share_quartiles": [shares[len(shares) // 4], shares[-1 - len(shares) // 4]],
        "share_of_halves": middle(lambda r: r["halves"] / r["together"]),
        "waiting_share": middle(lambda r: r["waited"] / r["together"]),
        "received_bytes": rows[0]["bytes"],
        "rounds": rows[0]["rounds"],
        "repetitions": len(rows),
    }


def weak(everyone: ProcessMesh) -> dict[str, list[dict[str, float]]]:
    """Seconds per clip in one process, as clips of equal size are added: the fastest of three calls."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for kind, rows in found.items():
        if everyone.rank == 0:
            pipe = make_pipe(kind)
            calls = {clips: arguments(kind, 4 * clips) for clips in (1, 2, 4, 8, 16)}
            with apart():
                timed(pipe, calls[1], {**OPTIONS, "clips": 1})
                for clips, call in calls.items():
                    best = min(timed(pipe, call, {**OPTIONS, "clips": clips})[0] for _ in range(3))
                    rows.append({"clips": clips, "seconds_per_clip": best / clips})
        everyone.gather("weak")
    return found


def peers(everyone: ProcessMesh) -> dict[str, Any]:
    """Seconds of one forward with attention between all frames: stock, here, and in diffusers' context parallelism."""
    call, full = arguments("transformer", FRAMES["transformer"]), {"mode": "full", "timeout_s": 600.0}
    ours, theirs = make_pipe("transformer"), make_pipe("transformer")
    rows: list[dict[str, float]] = []
    with context_parallel(theirs.transformer, everyone.world):
        for _ in range(6):
            seconds = {"hasten": max(everyone.gather(timed(ours, call, full)[0]))}
            began = time.perf_counter()
            theirs(**call, generator=torch.Generator().manual_seed(0))
            seconds["diffusers"] = max(everyone.gather(time.perf_counter() - began))
            with apart():
                seconds["one"] = timed(ours, call, {**full, "clips": 1})[0] if everyone.rank == 0 else 1.0
            everyone.gather("peers")
            rows.append(seconds)
    return {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}


@contextmanager
def context_parallel(denoiser: Any, world: int) -> Iterator[None]:
    """Ulysses attention of diffusers, which divides by the number of accelerators and so fails on a CPU."""
    with patch.object(torch.accelerator, "device_count", lambda: 1):
        denoiser.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=world))
        yield


def main() -> None:
    """Run what is asked for; rank 0 writes."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    everyone = join(VideoInfinityConfig(**OPTIONS), torch.device("cpu"))
    path = Path(__file__).with_suffix(".json")
    results: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    for part in sys.argv[1:] or (*KINDS, "weak", "peers"):
        if part in KINDS:
            results[part] = measure(part, everyone)
        else:
            results[part] = {"weak": weak, "peers": peers}[part](everyone)
    if everyone.rank == 0:
        kinds = [kind for kind in KINDS if kind in results]
        runs = [as_run(results[kind]) for kind in kinds]
        link = fit(runs)
        results["prediction"] = {
            "link": vars(link),
            "efficiency": {
                kind: {ranks: predict(run, ranks, link) for ranks in (2, 8, 16)}
                for kind, run in zip(kinds, runs, strict=True)
            },
        }
        path.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    everyone.gather("end")
    dist.destroy_process_group()


def as_run(measured: dict[str, Any]) -> MeasuredRun:
    """Two processes as the cost model sees them."""
    return MeasuredRun(
        ranks=2,
        seconds=measured["seconds"]["together"],
        compute_seconds=measured["seconds"]["both"] / 2,
        rounds=int(measured["rounds"]),
        received=int(measured["received_bytes"]),
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from hasten.commands import describe_machine

    return {**describe_machine(), "cores": os.cpu_count()}


if __name__ == "__main__":
    main()
