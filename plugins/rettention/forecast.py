"""Forecast of the computation and memory of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hasten.extend import (
    AttentionTokens,
    Finding,
    Forecast,
    HastenError,
    LatentSize,
    StepCost,
    StepForecast,
    UnsupportedError,
    call_size,
    plain_forecast,
    unwrapped,
)
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
from hasten.schedules.sparse_steps import Phase, SparseSteps

if TYPE_CHECKING:
    from hasten.extend import Target

__all__ = ["call_findings", "forecast"]


def forecast(
    config: RettentionConfig,
    target: Target,
    names: Sequence[str],
    arguments: Mapping[str, Any],
    before: Forecast,
) -> Forecast | None:
    """Phase and FLOPs of every step at the size it has in ``before``, and the memory of the statistics.

    ``None`` if the call's size is not known. If its mask or memory budget cannot work, the facts contain the reason.
    """
    outlook = _Outlook.of(config, target, names, arguments, before.steps)
    if outlook is None:
        return None
    if outlook.problem is not None:  # another call may be fine, and this one raises it in its first step
        return replace(before, facts={"this_call_will_fail": str(outlook.problem)})
    steps = tuple(
        step.changed(outlook.sparse[step.size].share(phase), "" if phase is Phase.DENSE else phase.value)
        for step, phase in zip(before.steps, outlook.phases, strict=True)
    )
    return replace(before, steps=steps, facts=outlook.largest.facts())


def call_findings(
    config: RettentionConfig, target: Target, names: Sequence[str], arguments: Mapping[str, Any]
) -> Iterator[Finding]:
    """Problems of a call: an option that cannot work at its size, or no sparse attention."""
    plain = plain_forecast(target, arguments)
    outlook = plain and _Outlook.of(config, target, names, arguments, plain.steps)
    if not outlook:
        return
    if outlook.problem is not None:
        yield Finding("error", f"this call will fail: {outlook.problem}")
        return
    reason = outlook.largest.idle
    if reason is None and Phase.SPARSE not in outlook.phases:
        count = {phase: outlook.phases.count(phase) for phase in (Phase.DENSE, Phase.REFRESH)}
        reason = (
            f"of its {len(outlook.phases)} steps {count[Phase.DENSE]} are warm-up and "
            f"{count[Phase.REFRESH]} refresh the statistics, so none is sparse; run more steps, lower "
            f"warmup, or raise period"
        )
    if reason is not None:
        yield Finding("warning", f"no attention of this call becomes sparse: {reason}")


@dataclass(frozen=True)
class _Outlook:
    """Forecast of one call.

    Args:
        phases: of every step.
        sparse: sparse layers, by size of the latents.
        problem: reason why the call cannot work, ``None`` if it can.
    """

    phases: tuple[Phase, ...]
    sparse: Mapping[tuple[int, int], _Sparse]
    problem: HastenError | None = None

    @classmethod
    def of(
        cls,
        config: RettentionConfig,
        target: Target,
        names: Sequence[str],
        arguments: Mapping[str, Any],
        steps: Sequence[StepForecast],
    ) -> _Outlook | None:
        """The forecast of a call with these steps, ``None`` if its size is not known in advance."""
        full = call_size(target, arguments)
        if full is None or not steps:
            return None
        sizes = dict.fromkeys(step.size for step in steps)
        try:
            sparse = {
                at: _Sparse(config, target, names, LatentSize(*at, full.frames), arguments) for at in sizes
            }
        except HastenError as error:
            return cls((), {}, error)
        schedule = planned_schedule(config, target, full.frames is not None, len(steps))
        return cls(_phases(schedule, target, steps, sparse), sparse)

    @property
    def largest(self) -> _Sparse:
        """The sparse layers at the largest size."""
        return self.sparse[max(self.sparse, key=lambda at: at[0] * at[1])]


def _phases(
    schedule: SparseSteps,
    target: Target,
    steps: Sequence[StepForecast],
    sparse: Mapping[tuple[int, int], _Sparse],
) -> tuple[Phase, ...]:
    """The phase of every step, as counted by the run clock.

    If the level rises (second-order ancestral solvers), the clock starts a new run at step 0 without statistics. A
    new size or the second of two denoisers also starts without statistics.
    """
    boundary = target.layout.expert_boundary(target.pipe) if len(target.denoisers) > 1 else None
    index, cached, before, phases = -1, False, (math.inf, steps[0].size), []
    for step in steps:
        if step.level > before[0]:
            index, cached = -1, False
        if step.size != before[1] or (boundary is not None and step.level < boundary <= before[0]):
            cached = False
        index += 1
        before = (step.level, step.size)
        phase = schedule.phase(index, cached=cached) if sparse[step.size].idle is None else Phase.DENSE
        phases.append(phase)
        cached = cached or phase is Phase.REFRESH
    return tuple(phases)


class _Sparse:
    """The layers that a call makes sparse, and what that saves in one step."""

    def __init__(
        self,
        config: RettentionConfig,
        target: Target,
        names: Sequence[str],
        size: LatentSize,
        arguments: Mapping[str, Any],
    ) -> None:
        cost = StepCost(target, arguments, size)
        self._full = cost.of((size.height, size.width))
        first = next(iter(target.denoisers.items()))
        own = [name for name in names if name.partition(".")[0] == first[0]]
        layers = sparse_layers(target, own, size, cost.text, config.min_tokens)
        self._kind = residual_dtype(config, first[1].dtype)  # type: ignore[arg-type]
        tokens = target.capability(AttentionTokens)
        samples = cost.samples * tokens.folded(unwrapped(first[1]), size)
        allowed, self._memory = affordable(layers, samples, self._kind, config.correction, config.budget)
        require_room(self._memory, len(allowed), config, torch.device(target.device))
        self._config, self._all = config, len(own)
        self._layers = [layer for layer in layers if layer.name in allowed]
        masks = [
            mask_shape(config.mask, config.keep_ratio, config.tile, layer.grid) for layer in self._layers
        ]
        self._attention = samples * sum(layer.flops for layer in self._layers)
        if 0 < self._full < self._attention:
            raise UnsupportedError(
                f"{type(tokens).__name__} of the adapter describes more tokens than {target.name} computes: its "
                f"attention alone would be {self._attention / self._full:.1f} times the whole forward; correct its "
                f"'patch' for this model"
            )
        self._saved = samples * sum(
            layer.flops * (1.0 - mask.computed(layer.grid)) for layer, mask in zip(self._layers, masks)
        )
        pairs = sum(layer.grid.total**2 for layer in self._layers)
        kept = sum(layer.grid.total**2 * mask.density(layer.grid) for layer, mask in zip(self._layers, masks))
        self._density = kept / pairs if pairs else 1.0
        self.idle = self._why_idle(layers, masks)
        """Reason why no attention becomes sparse, ``None`` if some does."""

    def _why_idle(self, layers: Sequence[SparseLayer], masks: Sequence[MaskShape]) -> str | None:
        config = self._config
        if not layers:
            return f"no layer has min_tokens={config.min_tokens} tokens of the picture at this size; lower it"
        if all(mask.covers_everything for mask in masks):
            return f"keep_ratio={config.keep_ratio} keeps every key at this size; lower it"
        return None

    def share(self, phase: Phase) -> float:
        """Operations of a step in this phase, as a share of a dense one's."""
        if phase is Phase.DENSE or not self._full:
            return 1.0
        refreshed = self._attention if phase is Phase.REFRESH else 0.0
        return (self._full + refreshed - self._saved) / self._full

    def facts(self) -> dict[str, Any]:
        """Values that the plan shows in addition to the steps."""
        return {
            "keep_ratio": self._config.keep_ratio,
            "true_density": round(self._density, 5),
            "sparse_layers": len(self._layers),
            "dense_layers": self._all - len(self._layers),
            "cache_bytes": self._memory,
            "cache": f"{self._memory / 1e9:.3f} GB in {str(self._kind).removeprefix('torch.')}",
            "attention_share": round(self._attention / self._full, 3) if self._full else 0.0,
        }
