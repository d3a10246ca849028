"""A long video over several processes.

One machine:      torchrun --nproc-per-node 2 examples/long_video.py mini/t2v-dit out.mp4 143
Several machines: examples/long_video_nodes.sh
One process:      python examples/long_video.py ./my-video-model out.mp4 143
"""

import os
import sys

import torch

import hasten
from hasten.pipelines import mini
from hasten.plugins.video_infinity.film import write_video

PROMPT = "a large red circle moving right on a white background"


def main(model: str, out: str, frames: str, steps: str = "20") -> None:
    """Make the video; every process runs the same lines."""
    torch.set_num_threads(1)
    pipe = hasten.load(model)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        pipe.to("cuda")
    first = os.environ.get("RANK", "0") == "0"
    pipe.set_progress_bar_config(disable=not first)
    call = {
        **(mini.recommended_call(model) | {"guidance_scale": 4.0} if model.startswith("mini/") else {}),
        "prompt": PROMPT,
        "num_frames": int(frames),
        "num_inference_steps": int(steps),
        "generator": torch.Generator().manual_seed(0),
    }
    # With a checkpoint folder the same command resumes, also with fewer processes.
    options = {"clip_frames": 9, "checkpoint": f"{out}.checkpoint"}
    filmed = write_video(pipe, out, call, options, fps=8)
    if first:
        print(
            f"{filmed.frames} frames in {filmed.path}, {filmed.world} processes, {filmed.denoise_seconds:.1f} s"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
