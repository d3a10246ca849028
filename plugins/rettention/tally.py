"""Statistics of the attention calls of one denoiser forward for the report, without synchronising the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hasten.schedules.sparse_steps import Phase

__all__ = ["Tally"]


@dataclass
class Tally:
    """Counts over the layers of a forward.

    Args:
        notes: further facts, such as the kernel.
    """

    notes: dict[str, Any] = field(default_factory=dict)
    _layers: dict[str, int] = field(default_factory=dict)
    _pairs: float = 0.0
    _kept: float = 0.0
    _rho: list[Tensor] = field(default_factory=list)
    _drift: list[float] = field(default_factory=list)

    def count(self, phase: Phase, pairs: int, density: float) -> None:
        """Note one call, of which ``density`` is the share of the score matrix of ``pairs`` that was used."""
        self._layers[phase.value] = self._layers.get(phase.value, 0) + 1
        self._pairs += pairs
        self._kept += density * pairs

    def saw_rho(self, rho: Tensor) -> None:
        """Note the ``rho`` of one call; its mean stays on the device."""
        self._rho.append(rho.mean())

    def saw_drift(self, error: float) -> None:
        """Note the drift that one call was found to have."""
        self._drift.append(error)

    def facts(self) -> dict[str, Any]:
        """For the report: layers by phase, share of all score matrices that was used, mean ``rho``, largest drift.

        Waits for the device, so ask only after the run.
        """
        facts: dict[str, Any] = {**self.notes}
        if self._layers:
            density = round(self._kept / self._pairs, 5)
            facts = {"layers": dict(self._layers), "density": density, **self.notes}
        if self._rho:
            facts["rho"] = round(float(torch.stack(self._rho).mean()), 4)
        if self._drift:
            facts["drift"] = round(max(self._drift), 4)
        return facts
