"""What a run will compute and remember, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten._cost import StepCost, call_size
from hasten._errors import UnsupportedError
from hasten._technique import Forecast, StepForecast
from hasten._timesteps import planned_levels
from hasten.plugins.rettention.budget import SparseLayer, affordable, residual_dtype, sparse_layers
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.handler import planned_schedule
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.masks import mask_shape
from hasten.schedules.sparse_steps import Phase

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = ["forecast"]


def forecast(
    config: RettentionConfig, target: Target, names: Sequence[str], arguments: Mapping[str, Any]
) -> Forecast | None:
    """Phase and FLOPs of every step of a call, and the memory of its statistics; ``None`` if its size is not known.

    Raises:
        ConfigError: the mask does not fit the call's size.
        UnsupportedError: the memory budget holds the statistics of no layer.
    """
    size = call_size(target, arguments)
    if size is None:
        return None
    try:
        levels = planned_levels(target, arguments, size)
    except UnsupportedError:
        return None
    cost = StepCost(target, arguments, size)
    first = next(iter(target.denoisers))
    own = [name for name in names if name.partition(".")[0] == first]
    layers = sparse_layers(target, own, size, cost.text, config.min_tokens)
    kind = residual_dtype(config, _dtype(target))
    allowed, memory = affordable(layers, cost.samples, kind, config.correction, config.budget)
    full = cost.of((size.height, size.width))
    saved = sum(_saving(config, layer) for layer in layers if layer.name in allowed) * cost.samples
    kept = sum(_density(config, layer) * layer.flops for layer in layers if layer.name in allowed)
    everything = sum(layer.flops for layer in layers if layer.name in allowed)
    schedule = planned_schedule(config, target.adapter.family, size.frames is not None, len(levels))
    steps = []
    for index, (level, phase) in enumerate(zip(levels, schedule.phases(len(levels)))):
        flops = {Phase.DENSE: full, Phase.REFRESH: 2 * full - saved - _rest(cost, layers, allowed, full)}.get(
            phase, full - saved
        )
        note = "" if phase is Phase.DENSE else phase.value
        steps.append(StepForecast(index, level.time, (size.height, size.width), flops, note))
    facts = {
        "keep_ratio": config.keep_ratio,
        "true_density": round(kept / everything, 5) if everything else 1.0,
        "sparse_layers": len(allowed),
        "dense_layers": len(own) - len(allowed),
        "cache_bytes": memory,
        "cache": f"{memory / 1e9:.3f} GB in {str(kind).removeprefix('torch.')}",
        "attention_share": round(everything * cost.samples / full, 3) if full else 0.0,
    }
    return Forecast(tuple(steps), len(levels) * full, facts)


def _rest(cost: StepCost, layers: Sequence[SparseLayer], allowed: frozenset[str], full: float) -> float:
    """Everything that is not attention of a sparse layer: a refresh computes it once."""
    return full - cost.samples * sum(layer.flops for layer in layers if layer.name in allowed)


def _density(config: RettentionConfig, layer: SparseLayer) -> float:
    return mask_shape(config.mask, config.keep_ratio, config.tile, layer.grid).density(layer.grid)


def _saving(config: RettentionConfig, layer: SparseLayer) -> float:
    """Operations of one sample that a sparse step leaves out."""
    shape = mask_shape(config.mask, config.keep_ratio, config.tile, layer.grid)
    return layer.flops * (1.0 - SparseLayout(shape, layer.grid).computed)


def _dtype(target: Target) -> Any:
    return next(iter(target.denoisers.values())).dtype
