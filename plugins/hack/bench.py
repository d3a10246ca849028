"""Memory and time of a cache, on the attention shapes of published models with random tensors.

Memory and time of attention do not depend on the values, and weights take no part: layers are driven directly,
scale by scale, with fresh queries, keys and values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hasten.extend import KVCache
from hasten.pipelines.var.cache import DenseKVCache
from hasten.plugins.hack.calibration import Artefact
from hasten.plugins.hack.config import HackConfig
from hasten.plugins.hack.math import HeadStatistics
from hasten.plugins.hack.plan import make_plan
from hasten.schedules.kv_budget import kv_bytes
from hasten.schedules.scales import VAR_SCHEDULES, Schedule, infinity_schedule, token_ends

__all__ = ["SHAPES", "Measurement", "Shape", "balanced_artefact", "measure", "run_layers"]


@dataclass(frozen=True)
class Shape:
    """Attention of one published model.

    Args:
        layers: self-attention layers.
        heads: heads of each.
        dim: channels of a head.
        schedule: token grids.
    """

    layers: int
    heads: int
    dim: int
    schedule: Schedule

    @property
    def exact_tokens(self) -> int:
        """Tokens an exact cache keeps, summed over all heads of all layers: those before the last scale."""
        return self.layers * self.heads * token_ends(self.schedule)[-2]

    @property
    def all_tokens(self) -> int:
        """Tokens of all scales, summed over all heads of all layers."""
        return self.layers * self.heads * token_ends(self.schedule)[-1]


SHAPES = {
    "var-d16": Shape(16, 16, 64, VAR_SCHEDULES[256]),
    "var-d30": Shape(30, 30, 64, VAR_SCHEDULES[256]),
    "var-d36": Shape(36, 36, 64, VAR_SCHEDULES[512]),
    "infinity-2b": Shape(32, 16, 128, infinity_schedule(1.0)),
    "infinity-8b": Shape(40, 28, 128, infinity_schedule(1.0)),
}


@dataclass(frozen=True)
class Measurement:
    """One run.

    Args:
        shape: key of :data:`SHAPES`.
        ratio: of the plan; ``None`` for the exact cache.
        layers: layers that were run.
        pictures: of the batch; guidance doubles the rows.
        peak_bytes: most bytes in distinct live storages, sampled after every layer and scale, scaled to all layers.
        formula_bytes: keys and values of the plan's tokens.
        reference_bytes: of the original layout: ``T_K`` tokens, keys in 4 bytes, values in 2.
        seconds: wall-clock of the layers that were run.
        compression_seconds: host time of choosing and gathering, within ``seconds``.
    """

    shape: str
    ratio: float | None
    layers: int
    pictures: int
    peak_bytes: int
    formula_bytes: int
    reference_bytes: int
    seconds: float
    compression_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def balanced_artefact(shape: Shape, layers: int) -> Artefact:
    """A calibration in which every second head is contextual, because random weights have no head types."""
    scales = len(shape.schedule)
    kinds = (torch.arange(shape.heads) % 2).float().expand(layers, -1).clone()
    mass = torch.ones(layers, shape.heads, scales, scales).tril()
    statistics = HeadStatistics(kinds, kinds, 1 - kinds)
    return Artefact("random", shape.schedule, 0, statistics, mass / mass.sum(-1, keepdim=True))


@torch.no_grad()
def run_layers(
    cache: KVCache, shape: Shape, layers: int, pictures: int, device: str, dtype: torch.dtype
) -> int:
    """Attend through ``layers`` layers over all scales; returns the most bytes the cache held."""
    generator = torch.Generator(device).manual_seed(0)
    cache.begin(shape.schedule, layers)
    peak = 0
    for scale, (rows, columns) in enumerate(shape.schedule):
        size = (2 * pictures, shape.heads, rows * columns, shape.dim)
        for layer in range(layers):
            query, key, value = (torch.randn(size, generator=generator, device=device) for _ in range(3))
            query, key = 4 * F.normalize(query, dim=-1), F.normalize(key, dim=-1)
            cache.attend(layer, scale, query.to(dtype), key.to(dtype), value.to(dtype))
            peak = max(peak, cache.nbytes)
    cache.reset()
    return peak


def measure(
    name: str,
    ratio: float | None,
    *,
    layers: int | None = None,
    pictures: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    options: Mapping[str, Any] | None = None,
) -> Measurement:
    """Run one shape with one ratio, or with the exact cache."""
    from hasten.eval.efficiency.timing import synchronize

    shape = SHAPES[name]
    count = layers or shape.layers
    config = None if ratio is None else HackConfig(ratio=ratio, **(options or {}))
    cache, tokens = _cache(config, shape, count)
    synchronize(torch.device(device))
    began = time.perf_counter()
    peak = run_layers(cache, shape, count, pictures, device, dtype)
    synchronize(torch.device(device))
    whole = shape.layers / count
    return Measurement(
        shape=name,
        ratio=ratio,
        layers=count,
        pictures=pictures,
        peak_bytes=round(peak * whole),
        formula_bytes=round(kv_bytes(2 * pictures, tokens, shape.dim, dtype.itemsize) * whole),
        reference_bytes=kv_bytes(2 * pictures, shape.all_tokens, shape.dim, 3),
        seconds=time.perf_counter() - began,
        compression_seconds=getattr(cache, "seconds", 0.0),
    )


def _cache(config: HackConfig | None, shape: Shape, layers: int) -> tuple[KVCache, int]:
    """The cache of a run, the exact one without a configuration, and the most tokens that it holds."""
    from hasten.plugins.hack.cache import HackCache

    ends = token_ends(shape.schedule)
    if config is None:
        return DenseKVCache(), layers * shape.heads * ends[-2]
    plan = make_plan(config, shape.schedule, layers, shape.heads, balanced_artefact(shape, layers))
    return HackCache(config, lambda _: plan), max(plan.stored_tokens(k) for k in range(len(ends) - 1))
