"""A long video over several processes.

One machine:      torchrun --nproc-per-node 2 examples/long_video.py mini/t2v-dit out.mp4 143
Several machines: examples/long_video_nodes.sh
Your own model:   python examples/long_video.py ./my-wan out.mp4 321 --prompt "a lighthouse in a storm" \\
                      --dtype bfloat16 --clip-frames 21
"""

import argparse
import os

import torch

import hasten
from hasten.pipelines import mini
from hasten.plugins.video_infinity.long_video import write_video

PROMPT = "a large red circle moving right on a white background"
DTYPES = ("float32", "bfloat16", "float16")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Make a long video over several processes.")
    parser.add_argument("model", help="mini/t2v-dit, a local folder or a hub id")
    parser.add_argument("out", help="a file ending in .mp4, .mov or .mkv, or a folder for PNGs")
    parser.add_argument("frames", type=int, help="frames of the video")
    parser.add_argument("steps", type=int, nargs="?", default=20, help="denoising steps (20)")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument(
        "--clip-frames", type=int, default=9, help="largest number of latent frames of a clip (9)"
    )
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--guidance-scale", type=float)
    return parser.parse_args()


def main(given: argparse.Namespace) -> None:
    """Make the video; every process runs the same lines."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        torch.set_num_threads(1)
    dtype = given.dtype or ("bfloat16" if gpu else "float32")
    pipe = hasten.load(given.model, dtype=getattr(torch, dtype)).to("cuda" if gpu else "cpu")
    first = os.environ.get("RANK", "0") == "0"
    pipe.set_progress_bar_config(disable=not first)
    call = {}
    if given.model.startswith("mini/"):
        call = mini.recommended_call(given.model) | {"guidance_scale": 4.0}
    call |= {
        name: value
        for name in ("height", "width", "guidance_scale")
        if (value := getattr(given, name)) is not None
    }
    call |= {
        "prompt": given.prompt,
        "num_frames": given.frames,
        "num_inference_steps": given.steps,
        "generator": torch.Generator().manual_seed(0),
    }
    # With a checkpoint folder the same command resumes, also with fewer processes.
    options = {"clip_frames": given.clip_frames, "checkpoint": f"{given.out}.checkpoint"}
    video = write_video(pipe, given.out, call, options)
    if first:
        print(
            f"{video.frames} frames in {video.path}, {video.world} processes, {video.denoise_seconds:.1f} s"
        )


if __name__ == "__main__":
    main(arguments())
