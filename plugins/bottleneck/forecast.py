"""Predicts the resolution and the FLOPs of every step before a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten.extend import Finding, Forecast, LatentSize, StepCost, StepForecast, dynamic_shift, planned_steps
from hasten.plugins.bottleneck.config import BottleneckConfig, ContinuousConfig, RestartConfig
from hasten.plugins.bottleneck.levels import Resolutions, resolve, spectrum_for
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from hasten.extend import Target

__all__ = ["call_findings", "forecast"]


def forecast(
    config: BottleneckConfig, target: Target, arguments: Mapping[str, Any], before: Forecast
) -> Forecast | None:
    """Resolution and FLOPs of every step of a call.

    Args:
        config: the options.
        target: the pipeline.
        arguments: of the call, bound and with defaults.
        before: forecast without this technique.

    Returns:
        The forecast, or ``None`` if the size or the steps of the call cannot be predicted.

    Raises:
        ConfigError: the options do not allow a call of this size.
    """
    planned = planned_steps(target, arguments)
    if planned is None or len(planned[1]) != len(before.steps):
        return None
    size, levels = planned
    cost = StepCost(target, arguments, size)
    facts: dict[str, Any]
    if isinstance(config, RestartConfig):
        steps, facts = _restart_steps(config, target, arguments, size, cost), {}
    else:
        steps, facts = _continuous_steps(config, target, size, [level for level, _ in levels], cost, before)
    facts.update(cost.facts(dict.fromkeys(step.size for step in steps)))
    return Forecast(steps, before.baseline_flops, facts)


def _continuous_steps(
    config: ContinuousConfig,
    target: Target,
    size: LatentSize,
    levels: Sequence[NoiseLevel],
    cost: StepCost,
    before: Forecast,
) -> tuple[tuple[StepForecast, ...], dict[str, Any]]:
    """The steps of a run in continuous mode, and facts for the plan."""
    resolutions = resolve(config, target, size)
    full = cost.of(resolutions.full)
    steps = tuple(
        step if low is None else step.changed(cost.of(low) / full if full else 1.0, "low", low)
        for step, low in zip(before.steps, _sizes(resolutions, target, levels), strict=True)
    )
    facts: dict[str, Any] = {"low_until": [round(low.until, 4) for low in resolutions.lows]}
    if config.low_until == "auto":
        facts["spectrum"] = (
            spectrum_for(config, target.pipe, resolutions.full)[1] or "unknown: bound for unit variance"
        )
    if levels and resolutions.low_at(levels[-1], target.layout.prediction(target.pipe)):
        facts["caution"] = "the last step stays at full resolution, although it is above low_until"
    return steps, facts


def call_findings(
    config: ContinuousConfig, target: Target, arguments: Mapping[str, Any]
) -> Iterator[Finding]:
    """Findings about a call in continuous mode: a warning if no step would run at low resolution.

    Raises:
        ConfigError: the options do not allow a call of this size.
    """
    planned = planned_steps(target, arguments)
    if planned is None:
        return
    levels = [level for level, _ in planned[1]]
    resolutions = resolve(config, target, planned[0])
    if levels and not any(_sizes(resolutions, target, levels)):
        lowest = min(low.until for low in resolutions.lows)
        yield Finding(
            "warning",
            f"no step of this call runs at low resolution: the last of its {len(levels)} steps never does, "
            f"and no other step has a level from {lowest:.4g} to {config.high_first:.4g}; run more "
            f"steps, or "
            f"set low_until and high_first",
        )


def _sizes(
    resolutions: Resolutions, target: Target, levels: Sequence[NoiseLevel]
) -> list[tuple[int, int] | None]:
    """Low size (height, width) of every step; ``None`` for full resolution, which the last step always has."""
    prediction = target.layout.prediction(target.pipe)
    return [
        None if level.time == levels[-1].time else resolutions.low_at(level, prediction) for level in levels
    ]


def _restart_steps(
    config: RestartConfig, target: Target, arguments: Mapping[str, Any], size: LatentSize, cost: StepCost
) -> tuple[StepForecast, ...]:
    """The steps of all stages of a restart."""
    from hasten.plugins.bottleneck.restart import planned_run

    dynamic = target.pipe.scheduler.config.get("use_dynamic_shifting", False)
    mu = dynamic_shift(target, size, arguments["num_inference_steps"]) if dynamic else None
    run = planned_run(config, target, target.pipe.scheduler, size)
    run.prepare(None, mu)
    stages = enumerate(zip(run.planned, run.levels(target)), 1)
    steps = [(level, planned.size, number) for number, (planned, levels) in stages for level in levels]
    return tuple(
        StepForecast(i, level.time, at, cost.of(at), f"stage {number}")
        for i, (level, at, number) in enumerate(steps)
    )
