"""Milliseconds per forward that were measured on this machine, so that a plan can speak in seconds.

Every accelerated call leaves its medians in a small file of the user's cache, one for each model, device and number
format. ``HASTEN_CACHE`` names another folder; where it is empty, nothing is written and only this process remembers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from hasten._errors import HastenError
from hasten._machine import describe_machine
from hasten._records import read_sealed, seal, write_atomically

if TYPE_CHECKING:
    from hasten._report import Report
    from hasten._target import Target
    from hasten._technique import StepForecast

__all__ = ["Timings", "cache_folder", "remember", "timings_of"]

_log = logging.getLogger("hasten")
_known: dict[str, Timings] = {}
"""What this process has measured or read, by fingerprint."""
_CHANGE = 0.05
"""A file is written again if a time differs by this share."""


def cache_folder() -> Path | None:
    """Where `hasten` keeps what it learned on this machine, ``None`` if the user wants nothing kept."""
    chosen = os.environ.get("HASTEN_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    from platformdirs import user_cache_path

    return user_cache_path("hasten", appauthor=False)


@dataclass
class Timings:
    """Measured times of one model on one device in one number format.

    Args:
        forwards: key of a kind of step -> milliseconds of one of its evaluations of the denoiser.
        outside: key of a size -> seconds of a whole call outside of the denoiser.
        source: on what and when this was measured.
    """

    forwards: dict[str, float] = field(default_factory=dict)
    outside: dict[str, float] = field(default_factory=dict)
    source: str = ""

    @staticmethod
    def key(step: StepForecast) -> str:
        """Steps of the same size and operations take the same time, if techniques do the same in them."""
        each = step.flops / step.forwards
        return f"{step.size[0]}x{step.size[1]}|{each:.4g}|{step.note}"

    @staticmethod
    def outside_key(steps: Sequence[StepForecast], pictures: int) -> str:
        """The final size, and how many pictures are encoded and decoded at once."""
        size = max((step.size for step in steps), default=(0, 0))
        return f"{size[0]}x{size[1]}|{pictures}"

    @staticmethod
    def describe(key: str) -> str:
        """A key of :attr:`forwards` for a reader."""
        size, _, note = key.split("|")
        return f"at {size}{f' ({note})' if note else ''}"


def timings_of(target: Target) -> Timings:
    """What is known of this pipeline here; empty where it has not run yet."""
    name = _fingerprint(target)
    if name not in _known:
        _known[name] = _read(name)
    return _known[name]


def remember(target: Target, steps: Sequence[StepForecast], pictures: int, report: Report) -> None:
    """Keep the times of a call.

    Args:
        target: the pipeline.
        steps: as they are forecast for this call; one that went otherwise is not kept.
        pictures: of the call.
        report: of the call.
    """
    rows: dict[tuple[int, int], list[Any]] = {}
    for row in report.steps:
        rows.setdefault((row.run, row.index), []).append(row)
    if len(rows) != len(steps) or not rows:
        return
    found: dict[str, list[float]] = {}
    for step, forwards in zip(steps, rows.values()):
        sizes = {row.resolution[-2:] for row in forwards if row.resolution is not None}
        if sizes != {step.size}:
            return
        each = sum(row.milliseconds for row in forwards) / step.forwards
        found.setdefault(Timings.key(step), []).append(each)
    spent = sum(row.milliseconds for row in report.steps) / 1e3
    _update(
        target,
        {key: median(times) for key, times in found.items()},
        {Timings.outside_key(steps, pictures): max(0.0, report.seconds - spent)},
    )


def _update(target: Target, forwards: Mapping[str, float], outside: Mapping[str, float]) -> None:
    timings = timings_of(target)
    news = [*_news(timings.forwards, forwards), *_news(timings.outside, outside)]
    timings.forwards.update(forwards)
    timings.outside.update(outside)
    timings.source = _source(target)
    folder = cache_folder()
    if folder is None or not news:
        return
    try:
        path = folder / "timings" / f"{_fingerprint(target)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"forwards": timings.forwards, "outside": timings.outside, "source": timings.source}
        write_atomically(path, seal(content))
    except (HastenError, OSError) as error:
        _log.info("times are not kept for later plans: %s", error)


def _news(old: Mapping[str, float], new: Mapping[str, float]) -> list[str]:
    return [key for key, time in new.items() if abs(time - old.get(key, 0.0)) > _CHANGE * time]


def _read(name: str) -> Timings:
    folder = cache_folder()
    if folder is None:
        return Timings()
    try:
        content = read_sealed(folder / "timings" / f"{name}.json", "remove it", old=False)
        return Timings(**content) if content else Timings()
    except (HastenError, OSError, TypeError) as error:
        _log.info("earlier times are not used: %s", error)
        return Timings()


def _source(target: Target) -> str:
    return f"{_machine_name(target)}, {date.today().isoformat()}"


def _machine_name(target: Target) -> str:
    return _named(target.device, torch.get_num_threads())


@lru_cache(maxsize=8)
def _named(device: str, threads: int) -> str:
    machine = describe_machine()
    if device.startswith("cuda"):
        return str(machine.get("gpu", device))
    return f"{machine['processor']}, {threads} threads"


def _fingerprint(target: Target) -> str:
    """Of everything that decides the time of a forward, but for sizes: architecture, format, device, versions."""
    models = {
        name: [type(module).__name__, dict(getattr(module, "config", {}))]
        for name, module in target.denoisers.items()
    }
    parts = [target.name, models, target.dtype, target.device, _machine_name(target), torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]
