"""Forecast of the cost of each scale with a compressed cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hasten.extend import Forecast, ScaleCost, ScaleSchedule
from hasten.plugins.hack.config import HackConfig
from hasten.schedules.scales import token_ends

if TYPE_CHECKING:
    from hasten.extend import Target
    from hasten.plugins.hack.plan import CachePlan, HeadGroup

__all__ = ["forecast"]


def forecast(
    config: HackConfig,
    target: Target,
    arguments: Mapping[str, Any],
    plan: CachePlan | None,
    before: Forecast,
) -> Forecast | None:
    """Every scale with the keys its heads will read, and what choosing them takes.

    Args:
        config: options.
        target: the pipeline.
        arguments: of the call.
        plan: budgets; ``None`` where nothing is removed.
        before: the forecast so far.
    """
    schedule = target.capability(ScaleSchedule)
    plain = schedule.costs(target.pipe, arguments)
    if plain is None:
        return None
    unguided = {"unguided_last_scales": config.unguided_last_scales} if config.unguided_last_scales else {}
    costs = schedule.costs(target.pipe, {**arguments, **unguided}) or plain
    steps = []
    for scale, (step, full, cost) in enumerate(zip(before.steps, plain, costs, strict=True)):
        flops = cost.flops(cost.keys if plan is None else plan.read_tokens(scale))
        flops += 0.0 if plan is None else _choosing(config, plan, scale, cost)
        note = "" if flops == full.flops(full.keys) else "fewer keys"
        steps.append(step.changed(flops / full.flops(full.keys), note))
    return replace(before, steps=tuple(steps), facts={})


def _choosing(config: HackConfig, plan: CachePlan, scale: int, cost: ScaleCost) -> float:
    """Operations of the scores by which keys are chosen: half of an attention of so many queries."""
    tokens = cost.grid[0] * cost.grid[1]
    queries = min(tokens, config.queries if config.policy in ("hack", "hack_plus") else 32)
    scored = sum(
        len(group.heads) * _candidates(plan, group, scale)
        for groups in plan.layers
        for group in groups
        if _is_scored(config, plan, group, scale)
    )
    return cost.per_key / 2 * queries / tokens * scored


def _candidates(plan: CachePlan, group: HeadGroup, scale: int) -> int:
    """Keys that a head of the group can choose from at a scale."""
    rows, columns = plan.schedule[scale]
    return (group.stored(plan.schedule, scale - 1) if scale else 0) + rows * columns


def _is_scored(config: HackConfig, plan: CachePlan, group: HeadGroup, scale: int) -> bool:
    if group.sources is not None or config.policy == "streaming":
        return False
    if config.policy == "h2o":
        return True
    if config.policy == "hack_plus" and group.kind != "contextual":
        return False
    last = scale == len(token_ends(plan.schedule)) - 1
    total = _candidates(plan, group, scale)
    return total > min(group.attention, total if last else group.cache[scale])
