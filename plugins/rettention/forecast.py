"""What a run will compute and remember, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hasten.extend import Finding, Forecast, HastenError, LatentSize, StepCost, StepForecast, planned_steps
from hasten.plugins.rettention.budget import (
    SparseLayer,
    affordable,
    require_room,
    residual_dtype,
    sparse_layers,
)
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.handler import planned_schedule
from hasten.plugins.rettention.masks import MaskShape, mask_shape
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.sparse_steps import Phase, SparseSteps

if TYPE_CHECKING:
    from hasten.extend import Target

__all__ = ["call_findings", "forecast"]


def forecast(
    config: RettentionConfig, target: Target, names: Sequence[str], arguments: Mapping[str, Any]
) -> Forecast | None:
    """Phase and FLOPs of every step of a call, and the memory of its statistics; ``None`` if its size is not known.

    A call whose mask or memory budget cannot work is told of in the facts.
    """
    outlook = _Outlook.of(config, target, names, arguments)
    if outlook is None:
        return None
    size, levels, cost, sparse = outlook.size, outlook.levels, outlook.cost, outlook.sparse
    full = cost.of((size.height, size.width))
    baseline = full * sum(forwards for _, forwards in levels)
    if isinstance(sparse, HastenError):  # another call may be fine, and this one raises it in its first step
        rows = tuple(
            StepForecast(i, level.time, (size.height, size.width), forwards * full)
            for i, (level, forwards) in enumerate(levels)
        )
        return Forecast(rows, baseline, {"this_call_will_fail": str(sparse)})
    costs = {
        Phase.DENSE: full,
        Phase.REFRESH: full + sparse.attention - sparse.saved,
        Phase.SPARSE: full - sparse.saved,
    }
    steps = tuple(
        StepForecast(
            index,
            level.time,
            (size.height, size.width),
            forwards * costs[phase],
            "" if phase is Phase.DENSE else phase.value,
        )
        for index, ((level, forwards), phase) in enumerate(zip(levels, outlook.phases))
    )
    return Forecast(steps, baseline, sparse.facts(full))


def call_findings(
    config: RettentionConfig, target: Target, names: Sequence[str], arguments: Mapping[str, Any]
) -> Iterator[Finding]:
    """What a call will run into: an option that cannot work at its size, or nothing that becomes sparse."""
    outlook = _Outlook.of(config, target, names, arguments)
    if outlook is None:
        return
    if isinstance(outlook.sparse, HastenError):
        yield Finding("error", f"this call will fail: {outlook.sparse}")
        return
    reason = outlook.sparse.idle
    if reason is None and Phase.SPARSE not in outlook.phases:
        count = {phase: outlook.phases.count(phase) for phase in (Phase.DENSE, Phase.REFRESH)}
        reason = (
            f"of its {len(outlook.phases)} steps {count[Phase.DENSE]} are warm-up and {count[Phase.REFRESH]} renew the "
            f"statistics, which leaves none; run more steps, lower warmup, or raise period"
        )
    if reason is not None:
        yield Finding("warning", f"no attention of this call becomes sparse: {reason}")


@dataclass(frozen=True)
class _Outlook:
    """What is known of a call before it runs; ``sparse`` is why it cannot work, where it cannot."""

    size: LatentSize
    levels: list[tuple[NoiseLevel, int]]
    cost: StepCost
    phases: tuple[Phase, ...]
    sparse: _Sparse | HastenError

    @classmethod
    def of(
        cls, config: RettentionConfig, target: Target, names: Sequence[str], arguments: Mapping[str, Any]
    ) -> _Outlook | None:
        """The outlook of a call, ``None`` where its size or its levels are not known ahead."""
        planned = planned_steps(target, arguments)
        if planned is None:
            return None
        size, levels = planned
        cost = StepCost(target, arguments, size)
        schedule = planned_schedule(config, target, size.frames is not None, len(levels))
        phases = _phases(schedule, target, [level.time for level, _ in levels])
        try:
            sparse: _Sparse | HastenError = _Sparse(config, target, names, size, cost)
        except HastenError as error:
            sparse = error
        return cls(size, levels, cost, phases, sparse)


def _phases(schedule: SparseSteps, target: Target, times: Sequence[float]) -> tuple[Phase, ...]:
    """The phase of every step, as the run clock will count them.

    Where the level rises (ancestral solvers of second order), the clock takes it for a new run, which begins at step 0
    without statistics. The second of two denoisers begins without those of the first.
    """
    boundary = target.layout.expert_boundary(target.pipe) if len(target.denoisers) > 1 else None
    index, cached, phases = -1, False, []
    for before, time in zip((math.inf, *times), times):
        if time > before:
            index, cached = -1, False
        if boundary is not None and time < boundary <= before:
            cached = False
        index += 1
        phases.append(schedule.phase(index, cached=cached))
        cached = cached or phases[-1] is Phase.REFRESH
    return tuple(phases)


class _Sparse:
    """The layers that a call makes sparse, and what that saves in one step."""

    def __init__(
        self, config: RettentionConfig, target: Target, names: Sequence[str], size: LatentSize, cost: StepCost
    ) -> None:
        first = next(iter(target.denoisers.items()))
        own = [name for name in names if name.partition(".")[0] == first[0]]
        layers = sparse_layers(target, own, size, cost.text, config.min_tokens)
        self._kind = residual_dtype(config, first[1].dtype)  # type: ignore[arg-type]
        allowed, self._memory = affordable(layers, cost.samples, self._kind, config.correction, config.budget)
        require_room(self._memory, len(allowed), config, torch.device(target.pipe._execution_device))
        self._config, self._all = config, len(own)
        self._layers = [layer for layer in layers if layer.name in allowed]
        masks = [
            mask_shape(config.mask, config.keep_ratio, config.tile, layer.grid) for layer in self._layers
        ]
        self.attention = cost.samples * sum(layer.flops for layer in self._layers)
        """Operations of dense attention in these layers."""
        self.saved = cost.samples * sum(
            layer.flops * (1.0 - mask.computed(layer.grid)) for layer, mask in zip(self._layers, masks)
        )
        """How many of them a sparse step leaves out."""
        kept = sum(layer.flops * mask.density(layer.grid) for layer, mask in zip(self._layers, masks))
        self._density = kept * cost.samples / self.attention if self._layers else 1.0
        self.idle = self._why_idle(layers, masks)
        """Why none of it would be left out in any step, ``None`` if some is."""

    def _why_idle(self, layers: Sequence[SparseLayer], masks: Sequence[MaskShape]) -> str | None:
        config = self._config
        if not layers:
            return f"no layer has min_tokens={config.min_tokens} tokens of the picture at this size; lower it"
        if all(mask.covers_everything for mask in masks):
            return f"keep_ratio={config.keep_ratio} keeps every key at this size; lower it"
        return None

    def facts(self, full: float) -> dict[str, Any]:
        """What the plan shows besides the steps."""
        return {
            "keep_ratio": self._config.keep_ratio,
            "true_density": round(self._density, 5),
            "sparse_layers": len(self._layers),
            "dense_layers": self._all - len(self._layers),
            "cache_bytes": self._memory,
            "cache": f"{self._memory / 1e9:.3f} GB in {str(self._kind).removeprefix('torch.')}",
            "attention_share": round(self.attention / full, 3) if full else 0.0,
        }
