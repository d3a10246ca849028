"""From options and calibration to head groups and budgets for one schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hasten.extend import ConfigError
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
        sources: for policies that keep whole scales, which ones after each scale; ``None`` for those that choose
            tokens.
    """

    kind: Kind
    heads: tuple[int, ...]
    attention: int
    cache: tuple[int, ...]
    sources: tuple[frozenset[int], ...] | None = None

    def stored(self, schedule: Schedule, scale: int) -> int:
        """Tokens that one of these heads keeps after a scale."""
        if self.sources is not None:
            return sum(schedule[k][0] * schedule[k][1] for k in self.sources[scale])
        return min(token_ends(schedule)[scale], self.cache[scale])

    def read(self, schedule: Schedule, scale: int) -> int:
        """Keys that a query of one of these heads reads at a scale."""
        before = self.stored(schedule, scale - 1) if scale else 0
        return min(self.attention, before + schedule[scale][0] * schedule[scale][1])


@dataclass(frozen=True)
class CachePlan:
    """Groups of every layer, and what they come to.

    Args:
        schedule: token grids.
        layers: groups of each layer; together they hold each head once.
        prior: mean attention per token (layers, heads, scales, scales) for ``hack_plus``.
    """

    schedule: Schedule
    layers: tuple[tuple[HeadGroup, ...], ...]
    prior: Tensor | None = None

    @property
    def _groups(self) -> tuple[HeadGroup, ...]:
        return tuple(group for groups in self.layers for group in groups)

    def stored_tokens(self, scale: int) -> int:
        """Tokens kept after a scale, summed over all heads of all layers."""
        return sum(len(group.heads) * group.stored(self.schedule, scale) for group in self._groups)

    def read_tokens(self, scale: int) -> int:
        """Keys read at a scale, summed over all heads of all layers."""
        return sum(len(group.heads) * group.read(self.schedule, scale) for group in self._groups)

    def describe(self) -> str:
        """Budgets in tokens, with both conventions for the share."""
        ends = token_ends(self.schedule)
        heads = sum(len(group.heads) for group in self._groups)
        kept = max(self.stored_tokens(k) for k in range(len(ends) - 1)) / heads
        read = max(self.read_tokens(k) for k in range(len(ends))) / heads
        kinds: dict[str, int] = {}
        for group in self._groups:
            kinds[group.kind] = kinds.get(group.kind, 0) + len(group.heads)
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return (
            f"a head reads at most {read:.0f} of {ends[-1]} tokens on average ({heads} heads: {shown}); at most "
            f"{kept:.0f} are kept, {kept / ends[-1]:.0%} of T_K and {kept / ends[-2]:.0%} of an exact cache"
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
    mean = mean_budget(config, schedule)
    if config.policy == "local_scales":
        return CachePlan(schedule, (_local_group(config, schedule, mean, heads),) * layers)
    if artefact is None or config.policy in ("streaming", "snapkv", "h2o"):
        same = HeadGroup("all", tuple(range(heads)), mean, (mean,) * len(schedule))
        return CachePlan(schedule, ((same,),) * layers)
    if config.policy == "scale_static":
        return CachePlan(schedule, _static_groups(config, schedule, mean, artefact.mass))
    return _head_aware(config, schedule, mean, artefact)


def _head_aware(config: HackConfig, schedule: Schedule, mean: int, artefact: Artefact) -> CachePlan:
    """Contextual and structural groups with a budget each."""
    total, plus = token_ends(schedule)[-1], config.policy == "hack_plus"
    contextual = contextual_heads(artefact.statistics, config.alpha)
    share = float(contextual.float().mean())
    read = _pair(config, total, mean, share)
    kept = read
    if config.cache_ratio is not None:
        kept = _pair(config, total, max(MINIMUM, kept_tokens(total, config.cache_ratio)), share)
    reliance = _reliance(artefact.mass) if plus else None
    kinds: tuple[tuple[Kind, Tensor, int, int], ...] = (
        ("contextual", contextual, read[0], kept[0]),
        ("structural", ~contextual, read[1], kept[1]),
    )
    rows = []
    for layer in range(len(contextual)):
        groups = []
        for kind, members, most, keep in kinds:
            heads = tuple(members[layer].nonzero()[:, 0].tolist())
            if heads:
                cache = _cache_budgets(reliance, members, layer, keep, most, len(schedule))
                groups.append(HeadGroup(kind, heads, most, cache))
        rows.append(tuple(groups))
    return CachePlan(schedule, tuple(rows), _token_prior(artefact.mass, schedule) if plus else None)


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
    total, rows = token_ends(schedule)[-1], []
    for layer in range(layers):
        found: dict[frozenset[int], list[int]] = {}
        for head in range(heads):
            found.setdefault(frozenset(keep[layer, head].nonzero()[:, 0].tolist()), []).append(head)
        rows.append(
            tuple(
                HeadGroup("static", tuple(members), total, (), _until(sources, scales))
                for sources, members in found.items()
            )
        )
    return tuple(rows)


def _until(sources: frozenset[int], scales: int) -> tuple[frozenset[int], ...]:
    """Those of ``sources`` that exist after each scale."""
    return tuple(frozenset(k for k in sources if k <= scale) for scale in range(scales))


def _local_group(config: HackConfig, schedule: Schedule, mean: int, heads: int) -> tuple[HeadGroup, ...]:
    """All heads keep the first scales and, of the latest, those that fit."""
    counts = [rows * columns for rows, columns in schedule]
    sources = []
    for scale in range(len(schedule)):
        kept = set(range(min(scale + 1, config.initial_scales)))
        earliest = 0 if config.local_window is None else max(0, scale + 1 - config.local_window)
        for k in range(scale, earliest - 1, -1):
            if sum(counts[i] for i in kept | {k}) <= mean:
                kept.add(k)
        sources.append(frozenset(kept))
    return (HeadGroup("static", tuple(range(heads)), token_ends(schedule)[-1], (), tuple(sources)),)
