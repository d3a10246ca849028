"""Length and learning rate of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run.

    Args:
        steps: number of optimizer steps.
        learning_rate: the peak. It is reached after ``warmup`` steps, kept until the share ``decay_from`` of the run,
            and then reduced to 2 % along a half cosine.
        warmup: number of steps with a linear increase.
        decay_from: share of the run at which the decay starts.
        weight_decay: weight decay of AdamW.
        average: decay of the exponential moving average of the weights, which is the result; 0 for none.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    decay_from: float = 0.6
    weight_decay: float = 1e-3
    average: float = 0.999

    @property
    def plateau_ends(self) -> int:
        """First step of the decay. Until then, the length of the run can be changed."""
        return int(self.decay_from * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of ``step``."""
        progress = step / max(1, self.steps)
        tail = max(0.0, (progress - self.decay_from) / (1 - self.decay_from))
        return (
            self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.51 + 0.49 * math.cos(math.pi * tail))
        )
