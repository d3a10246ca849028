"""``hasten bench fid`` and ``hasten bench images``: is scoring fast enough, and does its memory stay bounded?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hasten import commands as common
from hasten.eval.bench.show import show

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["register", "time_fid", "time_images"]

_FID_HELP = """Time the Frechet distance of features: statistics, distance, and apart from them the interval.

The features lie in a file that is mapped, not read, as those of a large evaluation do.

[bold]Example[/]

  hasten bench fid --features 10000 --dimensions 2048
"""
_IMAGES_HELP = """Time the decoding of pictures in this process and in worker processes, in turns.

[bold]Example[/]

  hasten bench images --pictures 512 --side 512 --workers 2
"""


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("fid", help=_FID_HELP)(_fid)
    group.command("images", help=_IMAGES_HELP)(_images)


def _fid(
    features: Annotated[int, typer.Option(min=4, help="Feature vectors of each of the two sets.")] = 10_000,
    dimensions: Annotated[int, typer.Option(min=1, help="Length of a vector; Inception's is 2048.")] = 2048,
    interval: Annotated[bool, typer.Option(help="Also time the jackknife interval.")] = True,
    as_json: common.Json = False,
) -> None:
    rows = time_fid(features, dimensions, interval=interval)
    total = sum(row["seconds"] for row in rows[:3])
    note = f"statistics of both sets and distance: {total:.1f} s"
    show(
        f"Frechet distance, {features} against {features} vectors of {dimensions}",
        rows,
        [note],
        as_json=as_json,
    )


def _images(
    pictures: Annotated[int, typer.Option(min=2, help="PNG files to decode.")] = 256,
    side: Annotated[int, typer.Option(min=1, help="Their side in pixels.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of both.")] = 3,
    as_json: common.Json = False,
) -> None:
    show(
        f"Decoding {pictures} pictures of {side} px",
        time_images(pictures, side, workers, rounds),
        as_json=as_json,
    )


def time_fid(count: int, dimension: int, *, interval: bool = True) -> list[dict[str, Any]]:
    """Seconds and peak memory of each part of a Frechet distance between two sets of random features.

    Args:
        count: vectors in each set.
        dimension: of a vector.
        interval: also the grouped-jackknife interval of 25 groups.

    Returns:
        Rows ``{"part", "seconds", "memory, MB"}``: statistics of the reference, of the candidate, distance, interval.
    """
    from hasten.eval.functional.frechet import covariance_factor, frechet_distance
    from hasten.eval.functional.moments import Moments
    from hasten.eval.metrics.intervals import frechet_estimate

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        reference, candidate = (_spilled(Path(folder) / f"{i}.npy", count, dimension, i) for i in range(2))
        moments = _timed(rows, "statistics, reference", lambda: Moments.of(reference))
        own = _timed(rows, "statistics, candidate", lambda: Moments.of(candidate))
        _timed(rows, "distance", lambda: frechet_distance(own, moments, factor_y=covariance_factor(moments)))
        if interval:
            _timed(rows, "interval, 25 groups", lambda: frechet_estimate(candidate, moments, groups=25))
    return rows


def _timed(rows: list[dict[str, Any]], part: str, task: Callable[[], Any]) -> Any:
    from hasten.eval.efficiency import peak_memory

    with peak_memory() as peak:
        start = time.perf_counter()
        result = task()
        seconds = time.perf_counter() - start
    rows.append({"part": part, "seconds": seconds, "memory, MB": round(peak.above_start / 1e6)})
    return result


def _spilled(path: Path, count: int, dimension: int, seed: int) -> Tensor:
    """Random features with a decaying spectrum, as float32 in a mapped file."""
    import torch

    rng = np.random.default_rng(seed)
    scale = np.exp(-np.arange(dimension) / (dimension / 4)).astype(np.float32)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dimension))
    for start in range(0, count, 1024):
        rows = file[start : start + 1024]
        rows[:] = rng.standard_normal(rows.shape, dtype=np.float32) * scale
    file.flush()
    return torch.from_numpy(np.load(path, mmap_mode="r+"))


def time_images(count: int, side: int, workers: int, rounds: int) -> list[dict[str, Any]]:
    """Pictures a second, decoded here and by worker processes, in turns.

    Returns:
        Rows ``{"decoding", "pictures / s", "speed-up"}``.
    """
    from hasten.eval.efficiency import interleave

    with tempfile.TemporaryDirectory() as folder:
        _write_pictures(Path(folder), count, side)
        tasks = {
            "in this process": lambda: _read(folder, 0),
            f"in {workers} processes": lambda: _read(folder, workers),
        }
        timings = interleave(tasks, rounds)
    here = next(iter(tasks))
    return [
        {
            "decoding": name,
            "pictures / s": count / timings.median(name),
            "speed-up": timings.ratio(here, name).value,
        }
        for name in tasks
    ]


def _write_pictures(folder: Path, count: int, side: int) -> None:
    from PIL import Image

    smooth = Image.effect_noise((max(1, side // 8),) * 2, 90).resize((side, side), Image.Resampling.BICUBIC)
    for number in range(count):
        smooth.rotate(number % 360).convert("RGB").save(folder / f"{number:05d}.png")


def _read(folder: str, workers: int) -> int:
    from hasten.eval.pictures.loading import Loaded, batches
    from hasten.eval.pictures.sources import open_source

    return sum(len(images) for images in batches(open_source(folder), Loaded(), workers=workers))
