"""Peak memory of a process as a video grows with the number of processes, and while it is decoded.

    for n in 1 2 4; do torchrun --nproc-per-node $n docs/benchmarks/video_infinity_memory.py; done

Every process has eight latent frames; one process also makes longer videos alone, in clips of eight. The peak is the
resident memory beyond what the process had before the call, of the process that needed most; Linux only. Adds to
``video_infinity_memory.json`` beside this file.
"""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hasten.extend import FrameDecoder
from hasten.pipelines.adapters import find
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.decode import as_pixels
from hasten.plugins.video_infinity.joining import join
from hasten.plugins.video_infinity.video_file import Encoding, VideoFile

from video_infinity import OPTIONS, arguments, make_pipe, timed  # isort: skip

EACH = 8
"""Latent frames of a process."""
CLIPS = (1, 2, 4, 8)
"""Clips of a video that one process makes alone."""
DECODED = (8, 16, 32)
"""Latent frames that are decoded and encoded to a file."""


def resident(field: str) -> float:
    """A memory figure of this process in MB: ``VmRSS`` now, or ``VmHWM``, the most since it was reset."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


class Peak:
    """What a piece of work needs beyond what was there before, in MB."""

    def __enter__(self) -> Peak:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier work freed counts as free
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
        self._before = resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.megabytes = resident("VmHWM") - self._before


def denoising(kind: str, everyone: Any, clips: int = 1) -> float:
    """Peak of one call, of the process that needs most."""
    pipe = make_pipe(kind)
    call = arguments(kind, EACH * clips * everyone.world)
    options = {**OPTIONS, "clips": clips * everyone.world}
    timed(pipe, call, options)
    with Peak() as peak:
        timed(pipe, call, options)
    return max(everyone.gather(peak.megabytes))


def decoding() -> list[dict[str, float]]:
    """Peak of decoding and encoding videos of several lengths, frame by frame."""
    pipe = make_pipe("transformer")
    decoder: Any = find(pipe).capability(FrameDecoder)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in (4, *DECODED):
            latents = torch.randn(1, 8, frames, 16, 16, generator=torch.Generator().manual_seed(0))
            with Peak() as peak, VideoFile(Path(folder) / "video.mp4", Encoding()) as file:
                for piece in as_pixels(decoder.frames(pipe, latents)):
                    file.write(piece)
            rows.append({"latent_frames": frames, "megabytes": peak.megabytes})
    return rows[1:]  # the first one warms up


def main() -> None:
    """Add the figures of this number of processes."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    everyone = join(VideoInfinityConfig(**OPTIONS), torch.device("cpu"))
    path = Path(__file__).with_suffix(".json")
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for kind in ("transformer", "unet"):
        results.setdefault(kind, {})[str(everyone.world)] = denoising(kind, everyone)
        if everyone.world == 1:
            grown = {str(clips): denoising(kind, everyone, clips) for clips in CLIPS}
            results.setdefault("alone", {})[kind] = grown
    if everyone.world == 1:
        results["decoding"] = decoding()
    everyone.gather("end")
    if everyone.rank == 0:
        path.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
