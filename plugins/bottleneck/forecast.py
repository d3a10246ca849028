"""What a run will cost, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten._cost import StepCost, call_size
from hasten._errors import UnsupportedError
from hasten._technique import Forecast, StepForecast
from hasten._timesteps import by_step, dynamic_shift, planned_levels
from hasten.pipelines.adapters._base import LatentSize
from hasten.plugins.bottleneck.config import BottleneckConfig
from hasten.plugins.bottleneck.levels import resolve, spectrum_for
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = ["forecast"]


def forecast(config: BottleneckConfig, target: Target, arguments: Mapping[str, Any]) -> Forecast | None:
    """Size and FLOPs of every step of a call; ``None`` where its size or steps are not known ahead.

    Raises:
        ConfigError: the call's size is refused by the options.
    """
    size = call_size(target, arguments)
    if size is None:
        return None
    try:
        levels = by_step(planned_levels(target, arguments, size))
    except UnsupportedError:
        return None
    cost = StepCost(target, arguments, size)
    full = (size.height, size.width)
    if config.mode == "restart":
        steps = [
            (level, 1, at, f"stage {stage}")
            for level, at, stage in _restart_steps(config, target, arguments, size)
        ]
        facts: dict[str, Any] = {}
    else:
        resolutions = resolve(config, target, size)
        prediction = target.layout.prediction(target.pipe)
        sizes = [resolutions.low_at(level, prediction) for level, _ in levels]
        steps = [
            (level, forwards, low or full, "low" if low else "")
            for (level, forwards), low in zip(levels, sizes)
        ]
        facts = {"low_until": [round(low.until, 4) for low in resolutions.lows]}
        if config.low_until == "auto":
            facts["spectrum"] = spectrum_for(config, target.pipe)[1] or "unknown: bound for unit variance"
        if sizes and sizes[-1] is not None:
            facts["caution"] = "the last step is low, so the picture will lack detail: raise low_until"
    rows = tuple(
        StepForecast(i, level.time, at, forwards * cost.of(at), note)
        for i, (level, forwards, at, note) in enumerate(steps)
    )
    facts.update(cost.facts(dict.fromkeys(at for _, _, at, _ in steps)))
    return Forecast(rows, sum(forwards for _, forwards in levels) * cost.of(full), facts)


def _restart_steps(
    config: BottleneckConfig, target: Target, arguments: Mapping[str, Any], size: LatentSize
) -> list[tuple[NoiseLevel, tuple[int, int], int]]:
    """Level, latent size and stage number of every step of a restart."""
    from hasten.plugins.bottleneck.restart import planned_run

    dynamic = target.pipe.scheduler.config.get("use_dynamic_shifting", False)
    mu = dynamic_shift(target, size, arguments["num_inference_steps"]) if dynamic else None
    run = planned_run(config, target, target.pipe.scheduler, size)
    run.prepare(None, mu)
    return [
        (level, planned.size, number)
        for number, (planned, levels) in enumerate(zip(run.planned, run.levels(target)), 1)
        for level in levels
    ]
