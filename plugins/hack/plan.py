"""From options and calibration to head groups and budgets for one schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hasten._errors import ConfigError
from hasten.plugins.hack.calibration import Artefact
from hasten.plugins.hack.config import HackConfig
from hasten.plugins.hack.math import contextual_heads
from hasten.schedules.kv_budget import MINIMUM, kept_tokens, split_budget
from hasten.schedules.scales import Schedule, token_ends

__all__ = ["CachePlan", "HeadGroup", "make_plan", "mean_budget"]

Kind = Literal["contextual", "structural", "all", "static"]


@dataclass(frozen=True)
class HeadGroup:
    """Heads of one layer that are treated alike.

    Args:
        kind: what they are.
        heads: their numbers.
        attention: most keys a query of theirs reads.
        cache: most keys they keep after each scale.
        sources: scales kept by a static table, ``None`` for policies that choose tokens.
    """

    kind: Kind
    heads: tuple[int, ...]
    attention: int
    cache: tuple[int, ...]
    sources: frozenset[int] | None = None


@dataclass(frozen=True)
class CachePlan:
    """Groups of every layer, and what they come to.

    Args:
        schedule: token grids.
        layers: groups of each layer; together they hold each head once.
        budget: mean tokens per head that were asked for.
        prior: mean attention per token (layers, heads, scales, scales) for ``hack_plus``.
    """

    schedule: Schedule
    layers: tuple[tuple[HeadGroup, ...], ...]
    budget: int
    prior: Tensor | None = None

    def stored_tokens(self, scale: int) -> int:
        """Tokens kept after a scale, summed over all heads of all layers."""
        total = token_ends(self.schedule)[scale]
        return sum(
            len(group.heads)
            * (
                _kept(group, self.schedule, scale)
                if group.sources is not None
                else min(total, group.cache[scale])
            )
            for groups in self.layers
            for group in groups
        )

    def describe(self) -> str:
        """Budgets in tokens, with both conventions for the share."""
        ends = token_ends(self.schedule)
        heads = sum(len(group.heads) for groups in self.layers for group in groups)
        peak = max(self.stored_tokens(k) for k in range(len(ends) - 1)) / heads
        kinds = sorted({(g.kind, g.attention) for groups in self.layers for g in groups})
        shown = ", ".join(f"{kind} {tokens}" for kind, tokens in kinds)
        return (
            f"a head reads {self.budget} of {ends[-1]} tokens on average ({shown}); at most {peak:.0f} are kept, "
            f"{peak / ends[-1]:.0%} of T_K and {peak / ends[-2]:.0%} of what an exact cache keeps"
        )


def mean_budget(config: HackConfig, schedule: Schedule) -> int:
    """Mean tokens per head.

    Raises:
        ConfigError: it is below the minimum.
    """
    total = token_ends(schedule)[-1]
    tokens = config.budget_tokens if config.budget_tokens is not None else kept_tokens(total, config.ratio)
    if tokens < MINIMUM:
        raise ConfigError(
            f"ratio={config.ratio} leaves {tokens} of {total} tokens per head; at least {MINIMUM} are needed, so the "
            f"ratio may be {1 - MINIMUM / total:.3f} at most here"
        )
    return min(tokens, total)


def make_plan(
    config: HackConfig, schedule: Schedule, layers: int, heads: int, artefact: Artefact | None
) -> CachePlan:
    """Groups and budgets for one schedule.

    Raises:
        ConfigError: the budget is below the minimum.
    """
    mean, total = mean_budget(config, schedule), token_ends(schedule)[-1]
    everyone, scales = tuple(range(heads)), len(schedule)
    if artefact is None or config.policy in ("streaming", "snapkv", "h2o", "local_scales"):
        same = HeadGroup("all", everyone, mean, (mean,) * scales)
        return CachePlan(schedule, ((same,),) * layers, mean)
    if config.policy == "scale_static":
        return CachePlan(schedule, _static_groups(config, schedule, mean, artefact.mass), mean)
    contextual = contextual_heads(artefact.sigma, artefact.ratio, config.alpha)
    few, many = _pair(config, total, mean, float(contextual.float().mean()))
    kept = (few, many)
    if config.policy == "hack_plus" and config.cache_ratio is not None:
        cached = max(MINIMUM, kept_tokens(total, config.cache_ratio))
        kept = _pair(config, total, cached, float(contextual.float().mean()))
    reliance = _reliance(artefact.mass) if config.policy == "hack_plus" else None
    rows = []
    for layer in range(layers):
        groups = []
        for kind, mask, read, keep in (
            ("contextual", contextual[layer], few, kept[0]),
            ("structural", ~contextual[layer], many, kept[1]),
        ):
            chosen = tuple(mask.nonzero()[:, 0].tolist())
            if chosen:
                cache = _cache_budgets(
                    reliance, contextual if kind == "contextual" else ~contextual, layer, keep, read, scales
                )
                groups.append(HeadGroup(kind, chosen, read, cache))  # type: ignore[arg-type]
        rows.append(tuple(groups))
    prior = _token_prior(artefact.mass, schedule) if config.policy == "hack_plus" else None
    return CachePlan(schedule, tuple(rows), mean, prior)


def _pair(config: HackConfig, total: int, mean: int, contextual: float) -> tuple[int, int]:
    if config.budgets == "uniform":
        return mean, mean
    return split_budget(total, mean, contextual, share=config.contextual_share)


def _reliance(mass: Tensor) -> Tensor:
    """How much later scales attend to the tokens up to and including each scale, (layers, heads, scales)."""
    scales = mass.shape[-1]
    up_to = mass.cumsum(-1)
    later = [up_to[:, :, k + 1 :, k].sum(-1) for k in range(scales)]
    return torch.stack(later, dim=-1)


def _cache_budgets(
    reliance: Tensor | None,
    members: Tensor,
    layer: int,
    keep: int,
    read: int,
    scales: int,
    power: float = 0.5,
) -> tuple[int, ...]:
    """Tokens kept after each scale: equal, or shared out over layers by how much later scales rely on them."""
    if reliance is None:
        return (keep,) * scales
    budgets = []
    for k in range(scales):
        weight = reliance[..., k].clamp(min=1e-6) ** power
        by_layer = torch.stack(
            [
                weight[i][members[i]].mean() if bool(members[i].any()) else weight.new_zeros(())
                for i in range(len(weight))
            ]
        )
        counts = members.sum(1).float()
        mean = (by_layer * counts).sum() / counts.sum()
        budgets.append(int(max(MINIMUM, min(read, int(keep * float(by_layer[layer] / mean))))))
    return tuple(budgets)


def _token_prior(mass: Tensor, schedule: Schedule) -> Tensor:
    """Mean attention that a scale pays to one token of each earlier scale."""
    return mass / torch.tensor([rows * columns for rows, columns in schedule])


def _static_groups(
    config: HackConfig, schedule: Schedule, mean: int, mass: Tensor
) -> tuple[tuple[HeadGroup, ...], ...]:
    """For every head the scales worth most attention per token, over all heads, until the mean budget is used."""
    counts = [rows * columns for rows, columns in schedule]
    layers, heads, scales, _ = mass.shape
    later = torch.stack([mass[:, :, k + 1 :, k].sum(-1) for k in range(scales - 1)], dim=-1)
    worth = later / torch.tensor(counts[:-1])
    room = layers * heads * mean
    keep = torch.zeros(layers, heads, scales, dtype=torch.bool)
    keep[:, :, : config.initial_scales] = True
    room -= int((keep * torch.tensor(counts)).sum())
    for flat in worth.flatten().argsort(descending=True).tolist():
        layer, rest = divmod(flat, heads * (scales - 1))
        head, scale = divmod(rest, scales - 1)
        if not keep[layer, head, scale] and counts[scale] <= room:
            keep[layer, head, scale] = True
            room -= counts[scale]
    rows = []
    for layer in range(layers):
        found: dict[frozenset[int], list[int]] = {}
        for head in range(heads):
            found.setdefault(frozenset(keep[layer, head].nonzero()[:, 0].tolist()), []).append(head)
        rows.append(
            tuple(
                HeadGroup("static", tuple(members), mean, (mean,) * scales, sources)
                for sources, members in found.items()
            )
        )
    return tuple(rows)


def _kept(group: HeadGroup, schedule: Schedule, scale: int) -> int:
    assert group.sources is not None
    return sum(
        rows * columns for k, (rows, columns) in enumerate(schedule[: scale + 1]) if k in group.sources
    )
