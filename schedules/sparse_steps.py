"""Which steps of a run compute attention densely, which of them renew the statistics, and which are sparse.

Works for any number of steps and any solver: a step is one noise level, numbered from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

__all__ = ["Phase", "SparseSteps", "warmup_steps"]


class Phase(Enum):
    """What attention does at one step."""

    DENSE = "dense"
    REFRESH = "refresh"
    SPARSE = "sparse"


@dataclass(frozen=True)
class SparseSteps:
    """The schedule of one run.

    Args:
        warmup: leading steps that stay dense.
        period: refresh at every step whose number is a multiple of this (Re-ttention, arXiv 2505.22918, section 5).
        refresh: refresh at exactly these steps instead.
    """

    warmup: int
    period: int = 5
    refresh: frozenset[int] | None = None

    def phase(self, index: int, *, cached: bool = True) -> Phase:
        """What to do at step ``index``.

        Args:
            index: step number from 0.
            cached: whether there are statistics to use; without them a sparse step becomes a refresh.
        """
        if index < self.warmup:
            return Phase.DENSE
        due = index % self.period == 0 if self.refresh is None else index in self.refresh
        return Phase.REFRESH if due or not cached else Phase.SPARSE

    def phases(self, steps: int) -> Iterator[Phase]:
        """The phases of a run of ``steps`` steps; the first one after the warm-up has no statistics yet."""
        cached = False
        for index in range(steps):
            phase = self.phase(index, cached=cached)
            cached = cached or phase is Phase.REFRESH
            yield phase


def warmup_steps(warmup: int | float, steps: int) -> int:
    """Dense leading steps: an integer is their number, a fraction their share of ``steps``, rounded up."""
    if isinstance(warmup, int):
        return warmup
    return math.ceil(warmup * steps - 1e-9)
