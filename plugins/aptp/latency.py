"""Measured time of every expert beside the base. Operations are not time: narrow layers use a chip worse than wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hasten.eval.efficiency.timing import interleave
from hasten.eval.statistics import Estimate
from hasten.extend import LatentSize, PrunableUnits, Target, unwrapped
from hasten.plugins.aptp.base import prepare
from hasten.plugins.aptp.bundle import Bundle

__all__ = ["Timed", "compare_forwards", "measure"]

BASE_NAME = "base"


@dataclass(frozen=True)
class Timed:
    """One model's forward beside the base's.

    Args:
        name: ``"base"`` or the number of the expert.
        macs_share: share of the base's multiply-accumulates.
        time: share of the base's time, with its interval.
        seconds: median of a forward.
    """

    name: str
    macs_share: float
    time: Estimate
    seconds: float


def measure(
    pipe: Any, folder: Path, *, batch: int = 1, rounds: int = 9, compiled: bool = False
) -> list[Timed]:
    """Time the base and every expert of a bundle at the bundle's size.

    Raises:
        CheckpointError: the bundle is damaged.
        UnsupportedError: it was made for another base.
    """
    target, bundle = Target.of(pipe), Bundle.load(folder)
    base = unwrapped(next(iter(target.denoisers.values())))
    plain, structure = prepare(target, bundle, base, weights=True)
    units = target.capability(PrunableUnits)
    numbers = range(len(bundle.experts))
    models = {str(i): bundle.build(bundle.source(plain, structure, i), structure, i) for i in numbers}
    shares = {str(i): expert.macs_share for i, expert in enumerate(bundle.manifest.experts)}
    size = LatentSize(bundle.manifest.size.height, bundle.manifest.size.width)
    inputs = units.inputs(base, size, bundle.manifest.size.text, batch)
    forward = partial(units.forward, inputs=inputs)
    return compare_forwards(
        {BASE_NAME: base, **models}, {BASE_NAME: 1.0, **shares}, forward, rounds, compiled
    )


def compare_forwards(
    models: Mapping[str, Any],
    shares: Mapping[str, float],
    forward: Callable[[Any], Any],
    rounds: int,
    compiled: bool = False,
) -> list[Timed]:
    """Time forwards in turns; every ratio is the median over pairs that ran back to back.

    Args:
        models: name -> model, ``"base"`` among them.
        shares: name -> share of the base's multiply-accumulates.
        forward: what is timed, given a model.
        rounds: how many turns.
        compiled: compile each model first.
    """
    ready = {name: torch.compile(model) if compiled else model for name, model in models.items()}

    def run(model: Any) -> None:
        with torch.no_grad():
            forward(model)

    device = next(models[BASE_NAME].parameters()).device
    timings = interleave(
        {name: partial(run, model) for name, model in ready.items()}, rounds=rounds, device=device
    )
    return [Timed(name, shares[name], timings.ratio(name, BASE_NAME), timings.median(name)) for name in ready]
