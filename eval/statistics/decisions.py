"""What may be concluded from an interval: non-inferiority, multiplicity, and what a sample size can show at
all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from hasten.eval.statistics.estimate import Estimate, check_level
from hasten.extend import ConfigError


@dataclass(frozen=True)
class Verdict:
    """Outcome of a non-inferiority test.

    ``"held"``: the loss is smaller than the margin at this confidence. ``"missed"``: the loss is larger than
    the margin at this confidence. ``"undecided"``: the sample can't tell; never to be read as "no loss".
    """

    outcome: Literal["held", "missed", "undecided"]
    margin: float
    worst: float
    estimate: Estimate


def non_inferiority(difference: Estimate, margin: float, *, higher_is_better: bool = True) -> Verdict:
    """Judge a paired difference (candidate minus baseline) against the loss a user tolerates.

    Args:
        difference: an estimate from :func:`hasten.eval.statistics.paired_difference` or another paired delta.
        margin: the largest tolerated loss, in the metric's unit, not negative.
        higher_is_better: direction of the metric.

    Returns:
        The verdict; ``worst`` is the end of the interval on the bad side, as a signed difference.

    Raises:
        ConfigError: if the margin is negative or not finite.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ConfigError(f"a margin is a tolerated loss and can't be {margin}")
    worst, best = (
        (difference.low, difference.high) if higher_is_better else (-difference.high, -difference.low)
    )
    outcome: Literal["held", "missed", "undecided"] = "undecided"
    if worst >= -margin:
        outcome = "held"
    elif best < -margin:
        outcome = "missed"
    return Verdict(outcome, margin, difference.low if higher_is_better else difference.high, difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given.

    Raises:
        ConfigError: if a value is not a probability.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size == 0:
        return []
    if not ((p >= 0) & (p <= 1)).all():
        raise ConfigError(f"p-values lie in [0, 1]; got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(x) for x in adjusted]


def _quantile_sum(level: float, power: float) -> float:
    check_level(level)
    if not 0 < power < 1:
        raise ConfigError(f"power must lie between 0 and 1 (0.8 for 80 %), not {power}")
    return float(stats.norm.isf((1 - level) / 2) + stats.norm.ppf(power))


def minimal_detectable_effect(se: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test of this standard error finds with this power.

    ``(z_(1 - alpha/2) + z_power) * se``, normal theory: 2.80 standard errors at 95 % and 80 %.

    Args:
        se: standard error of the difference, as in ``Estimate.se``.
        level: 1 minus the test's size.
        power: chance of finding it.
    """
    return _quantile_sum(level, power) * se


def pairs_needed(effect: float, spread: float, *, level: float = 0.95, power: float = 0.8) -> int:
    """How many independent pairs (clusters) show a difference of ``effect``.

    Args:
        effect: the difference to find, not zero.
        spread: standard deviation of the per-cluster differences.
        level: 1 minus the test's size.
        power: chance of finding it.
    """
    if effect == 0:
        raise ConfigError(
            "no sample size can show a difference of zero; give the smallest margin that matters"
        )
    return max(2, math.ceil((_quantile_sum(level, power) * spread / effect) ** 2))
