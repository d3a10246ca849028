"""How the minutes and the prompts of a tuning are divided, and whether they suffice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats  # type: ignore[import-untyped]

from hasten.eval.statistics import pairs_needed
from hasten.extend import ConfigError

__all__ = [
    "FEWEST_PROMPTS",
    "FINALISTS",
    "NOISY",
    "Budget",
    "Noise",
    "check_prompts",
    "check_spread",
    "divide",
    "looks",
]

FEWEST_PROMPTS = 6
"""In one part: with fewer pairs no exact test at 95 % can ever decide."""
FINALISTS = 3
"""Settings that are confirmed at most."""
NOISY = 0.2
"""Relative spread of the times of one setting above which they are not used."""
_SEARCHED, _CONFIRMED = 0.2, 0.4
"""Shares of the time that the reference's pictures for the search, and the confirmation, may take."""
_RIVALS = 2.0
"""What the finalists are taken to cost together, in pictures of the reference; they are faster than it."""


@dataclass(frozen=True)
class Noise:
    """How well this machine can be timed: the robust relative spread of batches of one setting."""

    spread: float

    @property
    def too_much(self) -> bool:
        """Whether FLOPs have to stand in for seconds."""
        return self.spread > NOISY

    @classmethod
    def of(cls, seconds: tuple[float, ...]) -> Noise:
        """From the seconds of equal batches: 1.4826 times the median distance from the median, over the median."""
        if len(seconds) < 2:
            return cls(0.0)
        middle = _median(seconds)
        return cls(1.4826 * _median(tuple(abs(value - middle) for value in seconds)) / middle)


def _median(values: tuple[float, ...]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True)
class Budget:
    """The division of a tuning.

    Args:
        search: so many of the first prompts are searched on.
        confirm: so many of the following ones, which the search never sees, are confirmed on.
        seconds: of the search; the rest is for the confirmation.
    """

    search: int
    confirm: int
    seconds: float


def check_prompts(count: int) -> None:
    """Refuse a list that can't be divided.

    Raises:
        ConfigError: says how many are needed.
    """
    if count < 2 * FEWEST_PROMPTS:
        raise ConfigError(
            f"{count} prompts are too few to tune on: {FEWEST_PROMPTS} are searched on and {FEWEST_PROMPTS} others "
            f"are needed to confirm what was found, so give at least {2 * FEWEST_PROMPTS}; a small margin needs more"
        )


def divide(minutes: float, each: float, prompts: int) -> Budget:
    """Half of the prompts for either part, or as many as there is time for.

    Args:
        minutes: of the whole tuning.
        each: seconds that a picture of the reference takes.
        prompts: how many there are.

    Raises:
        ConfigError: the time is too short for one round; says how long that takes.
    """
    total = 60 * minutes
    search = min(prompts - prompts // 2, int(_SEARCHED * total / each))
    confirm = min(prompts - search, int(_CONFIRMED * total / (each * (1 + _RIVALS))))
    if min(search, confirm) < FEWEST_PROMPTS:
        shortest = max(FEWEST_PROMPTS / _SEARCHED, FEWEST_PROMPTS * (1 + _RIVALS) / _CONFIRMED) * each / 60
        raise ConfigError(
            f"{minutes:g} minutes are too short for one round: a picture of the reference takes {each:.3g} s here, so "
            f"give --minutes {math.ceil(10 * 1.1 * shortest) / 10:g} at least"
        )
    return Budget(search, confirm, total - confirm * each * (1 + _RIVALS))


def looks(count: int, batch: int) -> tuple[int, ...]:
    """After how many prompts a setting is judged: few at first, each time about twice as many, ``count`` at last."""
    found, next_one = [], max(FEWEST_PROMPTS, batch)
    while next_one < count:
        found.append(-(-next_one // batch) * batch)
        next_one = 2 * found[-1]
    return (*(look for look in found if look < count), count)


def check_spread(
    spreads: Mapping[str, float], margins: Mapping[str, float], budget: Budget, prompts: int, level: float
) -> list[str]:
    """Whether the confirmation can decide at these margins.

    Args:
        spreads: metric -> standard deviation of its paired differences between the reference and another setting.
        margins: metric -> tolerated loss.
        budget: of the tuning.
        prompts: how many were given.
        level: coverage of the intervals.

    Returns:
        A warning for each metric by which a setting that loses nothing at all would often stay undecided.

    Raises:
        ConfigError: it would stay undecided more often than not.
    """
    warnings = []
    for metric, margin in margins.items():
        spread = spreads.get(metric, 0.0)
        if spread <= 0:
            continue
        hopeless = (stats.norm.isf((1 - level) / 2) * spread / margin) ** 2
        needed = pairs_needed(margin, spread, level=level)
        text = (
            f"a margin of {margin:g} of {metric} needs about {needed} prompts to confirm on (differences of one prompt "
            f"spread by {spread:.2g}), and there are {budget.confirm}"
        )
        enough = 2 * needed <= prompts
        remedy = "give more --minutes" if enough else f"give {2 * needed} prompts in all"
        if hopeless > budget.confirm:
            raise ConfigError(f"{text}: {remedy}, or a wider margin")
        if needed > budget.confirm:
            warnings.append(f"{text}: a setting that is as good may stay undecided; {remedy}")
    return warnings
