"""Noise levels on one common axis.

A noisy state is ``x = alpha * x0 + sigma * noise``. Rectified-flow models have ``alpha = 1 - t, sigma = t``;
variance-preserving (VP) models have ``alpha**2 + sigma**2 = 1``. Everything in `hasten` that asks "how noisy is
this step" uses :attr:`NoiseLevel.time`, the flow time of equal signal-to-noise ratio, so that one threshold means
the same thing for both kinds of model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseLevel:
    """Coefficients of a noisy state ``alpha * x0 + sigma * noise``.

    >>> NoiseLevel.flow(0.25).time
    0.25
    >>> round(NoiseLevel.vp(0.9).time, 4)  # the flow time with the same signal-to-noise ratio
    0.25

    Args:
        alpha: weight of the clean signal, in [0, 1].
        sigma: standard deviation of the noise, in [0, 1].
    """

    alpha: float
    sigma: float

    @property
    def time(self) -> float:
        """Flow time of equal signal-to-noise ratio: 0 is clean, 1 is pure noise."""
        return self.sigma / (self.alpha + self.sigma)

    @classmethod
    def flow(cls, time: float) -> NoiseLevel:
        """The level of a rectified-flow state at ``time`` in [0, 1]."""
        return cls(1.0 - time, time)

    @classmethod
    def vp(cls, alpha_cumprod: float) -> NoiseLevel:
        """The level of a variance-preserving state with cumulative product ``alpha_cumprod`` in [0, 1]."""
        return cls(math.sqrt(alpha_cumprod), math.sqrt(1.0 - alpha_cumprod))
