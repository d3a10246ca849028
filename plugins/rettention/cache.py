"""Statistics of refresh steps for the sparse steps: one entry per layer and branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.extend import UnsupportedError

__all__ = ["Key", "ResidualCache", "Statistics", "signature"]

Key = tuple[str, str, int, str]
"""Layer, branch, part of the forward, and segment of the layer; the last two where a technique divides them."""

_LARGEST = 448.0
"""Largest number of float8_e4m3fn."""


def signature(query: Tensor, grid: Any) -> tuple[Any, ...]:
    """Properties that must match for statistics to be valid: sizes, grid, type and device."""
    return tuple(query.shape), grid, query.dtype, query.device


@dataclass
class Statistics:
    """Statistics of one layer in one branch.

    Args:
        signature: of the call they come from.
        step: number of the refresh.
        rho: (B, H, G, 1) in single precision; ``None`` is 1.
        residual: (B, H, G, d) as it is stored; ``None`` is 0.
        scales: (B, H, G, 1) of a residual in eight bits.
        share: (B, H, G, 1) measured ``rho``, where the layer's result is merged with that of other keys.
        uses: sparse steps that have used them.
        last: number of the last step that did.
    """

    signature: tuple[Any, ...]
    step: int
    rho: Tensor | None
    residual: Tensor | None
    scales: Tensor | None = None
    share: Tensor | None = None
    uses: int = 0
    last: int = -1

    def use(self, step: int) -> int:
        """Number of sparse steps before ``step`` that used them. Several calls in one step count once."""
        if step != self.last:
            self.uses += self.last >= 0
            self.last = step
        return self.uses

    @property
    def bytes(self) -> int:
        """Memory they take."""
        share = None if self.share is self.rho else self.share
        held = (self.rho, self.residual, self.scales, share)
        return sum(x.numel() * x.element_size() for x in held if x is not None)


class ResidualCache:
    """Statistics of a run.

    Args:
        dtype: type in which residuals are kept.
        offload: keep them in pinned host memory; the next layer's residual is copied while this layer computes.
        budget: maximum bytes of all entries together, ``None`` for no limit.
    """

    def __init__(self, dtype: torch.dtype, offload: bool = False, budget: int | None = None) -> None:
        self._dtype, self._offload, self._budget = dtype, offload, budget
        self._entries: dict[Key, Statistics] = {}
        self._travelling: dict[Key, tuple[Tensor, Any]] = {}
        self._stream: Any = None

    def put(
        self,
        key: Key,
        found: tuple[Any, ...],
        step: int,
        rho: Tensor | None,
        residual: Tensor | None,
        share: Tensor | None = None,
    ) -> None:
        """Store the statistics of a refresh.

        Raises:
            UnsupportedError: the budget is exceeded, because the pipeline calls its denoiser more often in a step
                than expected from its guidance.
        """
        self._drop(key)  # the order of the dictionary is that of the layers
        scales = None
        if residual is not None:
            if self._dtype.itemsize == 1:
                scales = residual.abs().amax(-1, keepdim=True).clamp(min=1e-30).div(_LARGEST).float()
                residual = residual / scales
            residual = self._store(residual.to(self._dtype))
        self._entries[key] = Statistics(found, step, rho, residual, scales, share)
        if self._budget is not None and self.bytes > self._budget:
            raise UnsupportedError(
                f"the statistics of {len(self)} layers and branches take {self.bytes} bytes and cache_budget allows "
                f"{self._budget}: the denoiser is called for more branches than expected from its guidance "
                f"(the last one is {key[1]!r} of {key[0]}); raise cache_budget, or name fewer layers"
            )

    def get(self, key: Key, found: tuple[Any, ...]) -> Statistics | None:
        """The statistics of a layer, ``None`` if there are no valid ones; invalid ones are deleted."""
        entry = self._entries.get(key)
        if entry is not None and entry.signature != found:
            self._drop(key)
            return None
        return entry

    def residual(self, key: Key) -> Tensor | None:
        """The residual (B, H, G, d) of a layer that :meth:`get` found, on the model's device."""
        entry = self._entries[key]
        if entry.residual is None:
            return None
        stored = self._arrive(key, entry) if self._offload else entry.residual
        return stored if entry.scales is None else stored.float() * entry.scales

    def keep_only(self, denoiser: str) -> None:
        """Delete the statistics of other denoisers."""
        for key in [key for key in self._entries if key[0].partition(".")[0] != denoiser]:
            self._drop(key)

    def clear(self, part: int) -> None:
        """Drop the statistics of one part of the forward."""
        for key in [key for key in self._entries if key[2] == part]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._entries.pop(key, None)
        self._travelling.pop(key, None)  # a residual on its way belongs to the entry

    @property
    def bytes(self) -> int:
        """Memory of all entries."""
        return sum(entry.bytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    # --- offloading

    def _store(self, residual: Tensor) -> Tensor:
        if not self._offload:
            return residual
        host = torch.empty(residual.shape, dtype=residual.dtype, pin_memory=True)
        return host.copy_(residual, non_blocking=True)

    def _arrive(self, key: Key, entry: Statistics) -> Tensor:
        """This layer's residual on the device; starts copying the next one."""
        device = entry.signature[-1]
        if key not in self._travelling:
            self._send(key, device)
        names = list(self._entries)
        following = names[(names.index(key) + 1) % len(names)]
        if following not in self._travelling and following != key:
            self._send(following, device)
        return self._receive(*self._travelling.pop(key))

    def _send(self, key: Key, device: torch.device) -> None:
        residual = self._entries[key].residual
        if residual is None:
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            stored = residual.to(device, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(self._stream)
        self._travelling[key] = (stored, ready)

    def _receive(self, stored: Tensor, ready: Any) -> Tensor:
        present = torch.cuda.current_stream(stored.device)
        present.wait_event(ready)
        stored.record_stream(present)
        return stored
