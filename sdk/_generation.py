"""Generate images for a list of prompts: one seed per prompt, results as soon as they are finished."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten._errors import ConfigError, HastenError
from hasten._pipeline import Pipeline
from hasten._prompts import read_prompts

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Job", "Sample", "generate", "prepare_folder", "read_prompts"]


@dataclass(frozen=True)
class Job:
    """What to generate.

    Args:
        prompts: one image (or video) is made for each.
        seed: prompt ``i`` uses a CPU generator seeded ``seed + i``, whatever the batch size, so that an image can
            be made again alone and both sides of a comparison start from the same noise.
        call: further arguments of the pipeline call (steps, size, guidance scale).
        batch_size: prompts per pipeline call.
    """

    prompts: tuple[str, ...]
    seed: int = 0
    call: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "prompts": list(self.prompts),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "call": dict(self.call),
        }


@dataclass(frozen=True)
class Sample:
    """One finished result: ``frames`` holds one picture for an image, all frames in order for a video.

    ``seconds`` is the wall-clock time of its pipeline call divided by the number of prompts in that call.
    """

    index: int
    prompt: str
    seed: int
    frames: tuple[Image, ...]
    seconds: float


def generate(pipe: Any, job: Job) -> Iterator[Sample]:
    """Yield one sample per prompt, in order, as soon as its batch is done.

    Raises:
        HastenError: if the pipeline's output has neither ``images`` nor ``frames``.
    """
    import torch

    for start in range(0, len(job.prompts), job.batch_size):
        prompts = list(job.prompts[start : start + job.batch_size])
        generators = [torch.Generator("cpu").manual_seed(job.seed + start + i) for i in range(len(prompts))]
        began = time.perf_counter()
        output = pipe(prompt=prompts, generator=generators, **{"output_type": "pil", **job.call})
        seconds = (time.perf_counter() - began) / len(prompts)
        for offset, (prompt, frames) in enumerate(zip(prompts, _pictures(pipe, output), strict=True)):
            yield Sample(start + offset, prompt, job.seed + start + offset, frames, seconds)


def _pictures(pipe: Pipeline, output: Any) -> list[tuple[Image, ...]]:
    images = getattr(output, "images", None)
    if images is not None:
        return [(image,) for image in images]
    frames = getattr(output, "frames", None)
    if frames is not None:
        return [tuple(video) for video in frames]
    raise HastenError(
        f"{type(pipe).__name__} returned a {type(output).__name__} with neither `images` nor `frames`; only "
        "pipelines that return images or videos are supported"
    )


def prepare_folder(path: str | Path, option: str = "--out") -> Path:
    """Create an output folder and prove that it can be written, before any work is spent.

    Args:
        path: the folder.
        option: the command-line option that names it.

    Raises:
        ConfigError: naming the folder and the operating system's reason.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"output folder {path} cannot be written ({reason}); choose another with {option}"
        ) from error
    return path
