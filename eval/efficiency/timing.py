"""Wall-clock time of alternatives, measured in turns so that a drifting clock or a warming chip hits all
alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats  # type: ignore[import-untyped]

from hasten.eval.statistics import Estimate
from hasten.eval.statistics.estimate import check_level
from hasten.extend import ConfigError


def synchronize(device: torch.device | str | None) -> None:
    """Wait for the work queued on a CUDA device. Without a device, or on the CPU, there is none."""
    if device is not None and torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timings:
    """Seconds per round of each name, in the order measured. Warm-up rounds are kept apart.

    Attributes:
        seconds: name -> one figure per round; round ``i`` of all names ran back to back.
        warmup: name -> the rounds that were not counted; the first holds compilation and autotuning.
        device: what was synchronised, or ``"cpu"``.
    """

    seconds: Mapping[str, tuple[float, ...]]
    warmup: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    device: str = "cpu"

    def _of(self, name: str) -> tuple[float, ...]:
        if name not in self.seconds:
            raise ConfigError(f"nothing named {name!r} was timed, only {', '.join(self.seconds)}")
        return self.seconds[name]

    def median(self, name: str) -> float:
        """Median seconds of ``name``."""
        return float(np.median(self._of(name)))

    def quantiles(self, name: str, *probabilities: float) -> tuple[float, ...]:
        """Quantiles of the seconds of ``name``, linearly interpolated between rounds."""
        return tuple(float(x) for x in np.quantile(self._of(name), probabilities))

    def quartiles(self, name: str) -> tuple[float, float]:
        """First and third quartile in seconds; their distance is the interquartile range."""
        low, high = self.quantiles(name, 0.25, 0.75)
        return low, high

    def ratio(self, name: str, reference: str, *, level: float = 0.95) -> Estimate:
        """How much time ``name`` takes relative to ``reference``: median over rounds of the pairwise ratio.

        The interval is the exact order-statistic interval of a median, which assumes no distribution and
        needs no resampling. Fewer than six rounds can't give 95 %; the interval then is the whole range and
        ``level`` the coverage it really has (75 % with three rounds).

        Args:
            name: numerator.
            reference: denominator. For a speed-up, pass the baseline as ``name``.
            level: coverage wanted.
        """
        ratios = np.sort(np.asarray(self._of(name)) / np.asarray(self._of(reference)))
        low, high, reached = _median_interval(ratios, level)
        n = len(ratios)
        spread = float(np.log(ratios).std(ddof=1)) if n > 1 else math.nan
        value = float(np.median(ratios))
        # Delta method, with the asymptotic inflation sqrt(pi / 2) of a median against a mean.
        se = value * spread * math.sqrt(math.pi / 2 / n)
        return Estimate(value, low, high, n, n, se, reached, "order statistics of the median")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: median, quartiles, rounds and warm-up of each name."""
        return {
            name: {
                "median_s": self.median(name),
                "quartiles_s": list(self.quartiles(name)),
                "rounds_s": list(self.seconds[name]),
                "warmup_s": list(self.warmup.get(name, ())),
            }
            for name in self.seconds
        }


def _median_interval(ordered: np.ndarray, level: float) -> tuple[float, float, float]:
    """The narrowest symmetric pair of order statistics that covers the median at ``level``, and its
    coverage.
    """
    check_level(level)
    n = len(ordered)
    # P(the k smallest all lie below the median) is a binomial tail; k = 0 always is the whole range.
    k = max(0, int(stats.binom.ppf((1 - level) / 2, n, 0.5)) - 1)
    while k > 0 and 2 * stats.binom.cdf(k, n, 0.5) > 1 - level:
        k -= 1
    coverage = 1 - 2 * float(stats.binom.cdf(k, n, 0.5))
    reached = level if coverage >= level else max(0.0, coverage)
    return float(ordered[k]), float(ordered[n - 1 - k]), reached


def interleave(
    tasks: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warmup: int = 1,
    device: torch.device | str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    seconds_of: Callable[[Any], float] | None = None,
) -> Timings:
    """Time callables in turns: A, B, A, B, ... (not A, A, B, B).

    Args:
        tasks: name -> callable without arguments.
        rounds: measured rounds, each running every task once.
        warmup: rounds run before and reported apart.
        device: a CUDA device is synchronised before and after every task.
        clock: seconds, monotonic.
        seconds_of: of the result of a task that times the part of itself that counts; ``clock`` then has no say.

    Returns:
        Seconds per task and round.

    Raises:
        ConfigError: without a task or a round. What a task raises passes through.
    """
    if not tasks or rounds < 1 or warmup < 0:
        raise ConfigError("timing needs at least one task and one round, and no negative warm-up")
    measured: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(warmup + rounds):
        for name, task in tasks.items():
            synchronize(device)
            start = clock()
            result = task()
            synchronize(device)
            measured[name].append(clock() - start if seconds_of is None else seconds_of(result))
    return Timings(
        {name: tuple(seconds[warmup:]) for name, seconds in measured.items()},
        {name: tuple(seconds[:warmup]) for name, seconds in measured.items()},
        "cpu" if device is None else str(device),
    )


class StageClock:
    """Seconds spent in named stages of one run; see :func:`stage_clock`."""

    def __init__(self, device: torch.device | str | None, clock: Callable[[], float]) -> None:
        self._device = device
        self._clock = clock
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``; the device is synchronised at both ends."""
        synchronize(self._device)
        start = self._clock()
        try:
            yield
        finally:
            synchronize(self._device)
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start
            self.calls[name] = self.calls.get(name, 0) + 1

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with its calls timed as the stage ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


def stage_clock(
    device: torch.device | str | None = None, clock: Callable[[], float] = time.perf_counter
) -> StageClock:
    """A clock for the stages of one run (text encoding, denoising, decoding).

    Synchronising at every stage boundary costs overlap, so take stage times in a run of their own and the
    total from :func:`interleave`.
    """
    return StageClock(device, clock)
