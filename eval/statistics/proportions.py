"""Accuracies: right answers over questions asked, with prompts as the independent units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats  # type: ignore[import-untyped]

from hasten.eval.statistics.estimate import (
    RESAMPLES,
    Estimate,
    FloatArray,
    as_samples,
    bootstrap,
    check_level,
    cluster_index,
    cluster_sums,
)
from hasten.extend import ConfigError

NO_DISCORDANT = "no discordant cluster"
"""Method of a paired interval where not one pair differs, so that nothing could be resampled."""


def wilson(right: float, asked: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
        right: successes, 0 to ``asked``; may be fractional (an effective count).
        asked: trials, positive.
        level: coverage.

    Returns:
        ``(low, high)`` within [0, 1]. Never collapses to a point, not even at 0 or 1.
    """
    check_level(level)
    if not (asked > 0 and 0 <= right <= asked):
        raise ConfigError(f"a proportion needs 0 <= right <= asked and asked > 0, not {right} of {asked}")
    z = float(stats.norm.isf((1 - level) / 2))
    p = right / asked
    centre = p + z * z / (2 * asked)
    half = z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    # At the ends the exact bound is 0 or 1; rounding would leave 1e-17 beside it.
    low = 0.0 if right == 0 else (centre - half) / scale
    high = 1.0 if right == asked else (centre + half) / scale
    return low, high


def _per_cluster(
    right: ArrayLike, asked: ArrayLike, clusters: Sequence[object] | None
) -> tuple[FloatArray, FloatArray, int]:
    r, a = as_samples(right, "right"), as_samples(asked, "asked")
    if len(r) != len(a):
        raise ConfigError(f"there are {len(r)} counts of right answers but {len(a)} of questions")
    if (r < 0).any() or (r > a).any():
        where = int(np.flatnonzero((r < 0) | (r > a))[0])
        raise ConfigError(f"sample {where} has {r[where]:g} right answers of {a[where]:g} questions")
    if a.sum() == 0:
        raise ConfigError("no question was asked in any sample")
    index = cluster_index(clusters, len(r))
    return cluster_sums(r, index), cluster_sums(a, index), len(r)


def ratio_of_sums(
    right: ArrayLike, asked: ArrayLike, *, clusters: Sequence[object] | None = None, level: float = 0.95
) -> Estimate:
    """Accuracy ``sum(right) / sum(asked)`` with a Wilson interval at the effective number of questions.

    Answers about one image stand and fall together, so the questions are not independent. The linearised
    between-cluster variance of the ratio gives a design effect, and the Wilson interval is taken at
    ``asked / design effect`` (Rao and Scott 1992). The effect is not let below 1, nor, where every answer is
    right (or wrong) and the variance says nothing, the effective number above the number of clusters.

    Args:
        right: ``[N]`` right answers per sample.
        asked: ``[N]`` questions per sample.
        clusters: one label per sample (the prompt); each sample its own where not given.
        level: coverage.

    Returns:
        The accuracy in [0, 1]; ``n`` is the number of samples.

    Raises:
        ConfigError: on impossible counts.
    """
    r, a, n = _per_cluster(right, asked, clusters)
    total, groups = float(a.sum()), len(a)
    p = float(r.sum()) / total
    if groups == 1:
        effective, se = 1.0, math.nan
    else:
        variance = float(((r - p * a) ** 2).sum()) * groups / (groups - 1) / total**2
        se = math.sqrt(variance)
        if 0 < p < 1:
            effective = min(total, p * (1 - p) / variance) if variance > 0 else total
        else:
            effective = float(min(groups, total))
    low, high = wilson(p * effective, effective, level=level)
    return Estimate(p, low, high, n, groups, se, level, "Wilson, cluster-adjusted")


def proportion(
    right: ArrayLike, *, clusters: Sequence[object] | None = None, level: float = 0.95
) -> Estimate:
    """One proportion of 0/1 answers with the interval of :func:`ratio_of_sums`."""
    answers = as_samples(right, "right")
    return ratio_of_sums(answers, np.ones_like(answers), clusters=clusters, level=level)


def _ratio_difference(
    base: FloatArray,
    candidate: FloatArray,
    base_asked: FloatArray,
    candidate_asked: FloatArray,
    axis: int = -1,
) -> FloatArray:
    before = base.sum(axis=axis) / base_asked.sum(axis=axis)
    return np.asarray(candidate.sum(axis=axis) / candidate_asked.sum(axis=axis) - before)


def paired_ratio_difference(
    base_right: ArrayLike,
    candidate_right: ArrayLike,
    asked: ArrayLike,
    *,
    candidate_asked: ArrayLike | None = None,
    clusters: Sequence[object] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Difference of two accuracies over the same prompts, candidate minus baseline.

    Args:
        base_right: ``[N]`` right answers of the baseline per sample.
        candidate_right: ``[N]`` right answers of the candidate, same order.
        asked: ``[N]`` questions per sample.
        candidate_asked: questions put to the candidate's image, where they differ from ``asked``.
        clusters: one label per sample (the prompt).
        level: coverage.
        seed: seed of the resampling.
        resamples: bootstrap resamples.

    Returns:
        Difference of the ratios of sums in [-1, 1] with a BCa paired cluster-bootstrap interval. Where no
        cluster differs the bootstrap would return a point; the interval is then what not seeing a single
        discordant cluster among ``k`` allows (Clopper-Pearson: ``1 - ((1 - level) / 2) ** (1 / k)`` on either
        side).

    Raises:
        ConfigError: on impossible counts.
    """
    check_level(level)
    a, asked_a, n = _per_cluster(base_right, asked, clusters)
    b, asked_b, m = _per_cluster(
        candidate_right, asked if candidate_asked is None else candidate_asked, clusters
    )
    if n != m:
        raise ConfigError(f"pairs are needed: the baseline has {n} samples, the candidate {m}")
    value, groups = float(_ratio_difference(a, b, asked_a, asked_b)), len(a)
    if groups == 1:
        return Estimate(value, -1.0, 1.0, n, 1, math.nan, level, "one cluster")
    if np.array_equal(a, b) and np.array_equal(asked_a, asked_b):
        bound = 1 - ((1 - level) / 2) ** (1 / groups)
        return Estimate(0.0, -bound, bound, n, groups, 0.0, level, NO_DISCORDANT)
    if np.ptp(np.stack([a, b, asked_a, asked_b]), axis=1).max() == 0:
        return Estimate(value, value, value, n, groups, 0.0, level, "constant")
    low, high, se = bootstrap(
        _ratio_difference, (a, b, asked_a, asked_b), level=level, seed=seed, resamples=resamples
    )
    return Estimate(value, low, high, n, groups, se, level, "BCa cluster bootstrap")
