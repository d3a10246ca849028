"""Seconds and memory per clip at the shapes of VideoCrafter2 and Wan 2.1, random weights, on GPUs.

    torchrun --nproc-per-node 8 docs/benchmarks/video_infinity_gpu.py [videocrafter2] [wan-1.3b]

Written where there was no GPU; it has not been run. With one process it gives the cost of a clip without messages; with
more, every process has a clip of its own (weak scaling), so the difference is what messages cost.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)

import hasten
from hasten.plugins.video_infinity.run_handlers import keep_local_latents

REPETITIONS = 5


def videocrafter2() -> tuple[Any, dict[str, Any], int]:
    """Its U-Net without the frame-rate condition, 320 x 512: 24 frames in a clip, as in the paper."""
    unet = UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64)
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )
    pipe = TextToVideoSDPipeline(vae, None, None, unet, DDIMScheduler())
    words = torch.randn(1, 77, 1024, device="cuda", dtype=torch.float16)
    return pipe, {"height": 320, "width": 512, "prompt_embeds": words, "negative_prompt_embeds": words}, 24


def wan() -> tuple[Any, dict[str, Any], int]:
    """The transformer of Wan 2.1 1.3B, 480 x 832: 21 latent frames in a clip, its trained length."""
    transformer = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = WanPipeline(None, None, vae, scheduler, transformer)
    words = torch.randn(1, 512, 4096, device="cuda", dtype=torch.float16)
    return pipe, {"height": 480, "width": 832, "prompt_embeds": words, "negative_prompt_embeds": words}, 21


SHAPES = {"videocrafter2": videocrafter2, "wan-1.3b": wan}


def measure(name: str, world: int) -> dict[str, float]:
    """Median seconds of a step, and peak memory in GB, with one clip in every process."""
    torch.manual_seed(0)
    pipe, call, clip = SHAPES[name]()
    pipe.to("cuda", torch.float16).set_progress_bar_config(disable=True)
    latent = clip * world
    frames = latent if name == "videocrafter2" else 4 * (latent - 1) + 1
    call |= {"num_frames": frames, "num_inference_steps": 1, "output_type": "latent", "return_dict": False}
    times = []
    with hasten.accelerate(pipe, {"video_infinity": {"clips": world}}), keep_local_latents() as sessions:
        for _ in range(REPETITIONS + 1):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            began = time.perf_counter()
            pipe(**call, generator=torch.Generator().manual_seed(0))
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    traffic = sessions[-1].exchange.traffic.values()
    return {
        "seconds": statistics.median(times[1:]),
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9,
        "received_megabytes": sum(t.received for t in traffic) / 1e6,
        "exposed_seconds": sum(t.exposed_milliseconds for t in traffic) / 1e3,
    }


def main() -> None:
    """Print one JSON line per shape on rank 0."""
    torch.set_grad_enabled(False)
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for name in sys.argv[1:] or SHAPES:
        measured = measure(name, world)
        if os.environ.get("RANK", "0") == "0":
            gpu = torch.cuda.get_device_name()
            sys.stdout.write(json.dumps({"shape": name, "processes": world, "gpu": gpu, **measured}) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
