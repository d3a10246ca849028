"""Accelerate a pipeline, generate with and without acceleration, and print plan and report."""

import sys
from pathlib import Path

import torch

import hasten

PROMPT = "a large red circle on the left and a small blue star on the right on a white background"

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
pipe = hasten.load("mini/t2i-dit")
call = {"num_inference_steps": 14, "guidance_scale": 3.0, "max_sequence_length": 0}

config = ["bottleneck"]

print(hasten.plan(pipe, config, **call))

with hasten.accelerate(pipe, config) as accel:
    fast = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **call).images[0]
    print(accel.report())
    with accel.paused():  # the stock pipeline, for comparison
        plain = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **call).images[0]

fast.save(out / "accelerated.png")
plain.save(out / "baseline.png")
