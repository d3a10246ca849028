"""What a run will compute and remember, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hasten._cost import StepCost, call_size
from hasten._errors import HastenError, UnsupportedError
from hasten._technique import Forecast, StepForecast
from hasten._timesteps import by_step, planned_levels
from hasten.pipelines.adapters._base import LatentSize
from hasten.plugins.rettention.budget import affordable, require_room, residual_dtype, sparse_layers
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.handler import planned_schedule
from hasten.plugins.rettention.masks import mask_shape
from hasten.schedules.sparse_steps import Phase

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = ["forecast"]


def forecast(
    config: RettentionConfig, target: Target, names: Sequence[str], arguments: Mapping[str, Any]
) -> Forecast | None:
    """Phase and FLOPs of every step of a call, and the memory of its statistics; ``None`` if its size is not known.

    A call whose mask or memory budget cannot work is told of in the facts.
    """
    size = call_size(target, arguments)
    if size is None:
        return None
    try:
        levels = by_step(planned_levels(target, arguments, size))
    except UnsupportedError:
        return None
    cost = StepCost(target, arguments, size)
    schedule = planned_schedule(config, target.adapter.family, size.frames is not None, len(levels))
    full = cost.of((size.height, size.width))
    baseline = full * sum(forwards for _, forwards in levels)
    try:
        sparse = _Sparse(config, target, names, size, cost)
    except HastenError as error:  # another call may be fine, and this one raises it in its first step
        rows = tuple(
            StepForecast(i, level.time, (size.height, size.width), forwards * full)
            for i, (level, forwards) in enumerate(levels)
        )
        return Forecast(rows, baseline, {"this_call_will_fail": str(error)})
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
        for index, ((level, forwards), phase) in enumerate(zip(levels, schedule.phases(len(levels))))
    )
    return Forecast(steps, baseline, sparse.facts(full))


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
