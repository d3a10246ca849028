"""The compressed cache that replaces a pipeline's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.extend import KVCache
from hasten.plugins.hack.config import HackConfig
from hasten.plugins.hack.math import merge_evicted
from hasten.plugins.hack.plan import CachePlan, HeadGroup
from hasten.plugins.hack.policies import Candidates, make_selector
from hasten.schedules.scales import Schedule

__all__ = ["HackCache"]

Planner = Callable[[Schedule], CachePlan]
Packed = tuple[Tensor, Tensor | None]
"""Values as they are, or bytes with one scale factor for each token."""


@dataclass
class _Kept:
    keys: Packed
    values: Packed
    source: Tensor
    mass: Tensor | None

    def parts(self) -> tuple[Tensor, ...]:
        found = (*self.keys, *self.values, self.source, self.mass)
        return tuple(part for part in found if part is not None)

    def rows(self, count: int) -> _Kept:
        def first(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[:count].clone()

        packed = [(part[0][:count].clone(), first(part[1])) for part in (self.keys, self.values)]
        return _Kept(packed[0], packed[1], self.source[:count].clone(), first(self.mass))


class HackCache(KVCache):
    """Keys and values of a few tokens per head. Eviction comes before attention: the keys that are read are those that
    are kept, unless the plan has separate budgets.

    Args:
        config: options of the technique.
        planner: gives the plan of a schedule.
    """

    def __init__(self, config: HackConfig, planner: Planner) -> None:
        self._config, self._planner = config, planner
        self._kept: dict[tuple[int, int], _Kept] = {}
        self.plan: CachePlan | None = None
        self.peak = 0
        """Most bytes held between two calls of :meth:`attend`."""
        self.seconds = 0.0
        """Host time spent on choosing and gathering, over all layers and scales."""

    def begin(self, schedule: Schedule, layers: int) -> None:
        """See :meth:`KVCache.begin`."""
        super().begin(schedule, layers)
        self.peak, self.seconds = 0, 0.0
        self.plan = self._planner(schedule)
        self._selector = make_selector(self._config, self.plan)

    def attend(self, layer: int, scale: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :meth:`KVCache.attend`."""
        assert self.plan is not None
        self.scale = scale
        groups = self.plan.layers[layer]
        out = torch.empty_like(value)
        for number, group in enumerate(groups):
            heads = _heads(group.heads, key.device)
            out[:, heads] = self._attend(
                (layer, number), group, scale, query[:, heads], key[:, heads], value[:, heads]
            )
        self.peak = max(self.peak, self.nbytes)
        return out

    def _attend(
        self, place: tuple[int, int], group: HeadGroup, scale: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        found = self._gather(place, scale, query, key, value)
        if group.sources is not None:
            return self._whole_scales(place, group.sources[scale], found)
        assert self._selector is not None
        began = time.perf_counter()
        last, total = self.is_last(scale), found.keys.shape[2]
        wanted = (group.attention, total if last else group.cache[scale])
        scores = None
        if total > min(wanted) or self._config.policy == "h2o":
            scores = self._selector.scores(found, group)
        read = self._choose(found, group, scores, wanted[0])
        keep = read if wanted[1] == wanted[0] else self._choose(found, group, scores, wanted[1])
        if last and read is not None and self._config.merge == "last" and group.kind == "contextual":
            keys, values = merge_evicted(found.keys, found.values, read)
        else:
            keys, values = _taken(found.keys, read), _taken(found.values, read)
        self.seconds += time.perf_counter() - began
        if not last:
            self._keep(place, found, scores, keep, (keys, values) if keep is read else None)
        return F.scaled_dot_product_attention(query, keys, values, scale=1.0)

    def _choose(
        self, found: Candidates, group: HeadGroup, scores: Tensor | None, count: int
    ) -> Tensor | None:
        if count >= found.keys.shape[2]:
            return None
        assert self._selector is not None
        return self._selector.choose(found, group, scores, count)

    def _gather(
        self, place: tuple[int, int], scale: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Candidates:
        """All candidate keys and values, removed from the cache."""
        source = torch.full(key.shape[:3], scale, dtype=torch.int8, device=key.device)
        before = self._kept.pop(place, None)
        mass = None
        if before is not None:
            key = torch.cat([_unpack(before.keys, key.dtype), key], dim=2)
            value = torch.cat([_unpack(before.values, value.dtype), value], dim=2)
            if before.mass is not None:
                mass = F.pad(before.mass, (0, source.shape[2]))
            source = torch.cat([before.source, source], dim=2)
        return Candidates(place[0], scale, query, key, value, source, mass)

    def _keep(
        self,
        place: tuple[int, int],
        found: Candidates,
        scores: Tensor | None,
        keep: Tensor | None,
        gathered: tuple[Tensor, Tensor] | None,
    ) -> None:
        keys, values = gathered or (_taken(found.keys, keep), _taken(found.values, keep))
        mass = scores if self._config.policy == "h2o" else None
        source = found.source
        if keep is not None:
            source = source.gather(2, keep)
            mass = None if mass is None else mass.gather(2, keep)
        pack = _pack if self._config.kv_bits == 8 else _plain
        self._kept[place] = _Kept(pack(keys), pack(values), source, mass)

    def _whole_scales(self, place: tuple[int, int], sources: frozenset[int], found: Candidates) -> Tensor:
        """Policies that keep or drop whole scales: the same for every row, nothing is scored."""
        if not self.is_last(found.scale):
            began = time.perf_counter()
            here = found.source[0, 0]
            kept = torch.isin(here, torch.tensor(sorted(sources), dtype=here.dtype, device=here.device))
            pack = _pack if self._config.kv_bits == 8 else _plain
            keys, values = (pack(part[:, :, kept]) for part in (found.keys, found.values))
            self._kept[place] = _Kept(keys, values, found.source[:, :, kept], None)
            self.seconds += time.perf_counter() - began
        return F.scaled_dot_product_attention(found.query, found.keys, found.values, scale=1.0)

    def facts(self) -> dict[str, Any]:
        """For the report: what is held now."""
        assert self.plan is not None
        held: dict[str, list[int]] = {}
        for layer, groups in enumerate(self.plan.layers):
            for number, group in enumerate(groups):
                row = self._kept.get((layer, number))
                held.setdefault(group.kind, []).append(0 if row is None else row.source.shape[2])
        return {
            "tokens": held,
            "bytes": self.nbytes,
            "peak_bytes": self.peak,
            "compression_ms": round(self.seconds * 1e3, 3),
        }

    def keep_rows(self, rows: int) -> None:
        """See :meth:`KVCache.keep_rows`."""
        self._kept = {place: kept.rows(rows) for place, kept in self._kept.items()}

    def reset(self) -> None:
        """See :meth:`KVCache.reset`; peak and time stay readable."""
        self._kept = {}
        self.scale = -1

    def tensors(self) -> tuple[Tensor, ...]:
        """See :meth:`KVCache.tensors`."""
        return tuple(part for kept in self._kept.values() for part in kept.parts())


def _heads(heads: tuple[int, ...], device: torch.device) -> Any:
    """A slice where the heads follow one another (no copy), else an index."""
    if heads == tuple(range(heads[0], heads[0] + len(heads))):
        return slice(heads[0], heads[0] + len(heads))
    return torch.tensor(heads, device=device)


def _taken(x: Tensor, indices: Tensor | None) -> Tensor:
    return x if indices is None else x.gather(2, indices[..., None].expand(-1, -1, -1, x.shape[-1]))


def _plain(x: Tensor) -> Packed:
    # A view of the projections of all heads would keep the whole of it alive.
    return (x if x.untyped_storage().nbytes() == x.numel() * x.element_size() else x.clone()), None


def _pack(x: Tensor) -> Packed:
    """One signed byte for each number, and a half-precision factor for each token."""
    factor = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return (x.float() / factor).round().to(torch.int8), factor.half()


def _unpack(packed: Packed, dtype: torch.dtype) -> Tensor:
    values, factor = packed
    return values if factor is None else (values.float() * factor.float()).to(dtype)
