"""Mean and mean paired difference with cluster-bootstrap intervals, and the tests that go beside them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

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


def _ratio(numerator: FloatArray, denominator: FloatArray, axis: int = -1) -> FloatArray:
    return np.asarray(numerator.sum(axis=axis) / denominator.sum(axis=axis))


def mean_estimate(
    values: ArrayLike,
    *,
    clusters: Sequence[object] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of per-sample scores with a BCa cluster-bootstrap interval.

    Args:
        values: ``[N]`` finite scores.
        clusters: one hashable label per score (the prompt); scores of one cluster are resampled together.
        level: coverage of the interval.
        seed: seed of the resampling; the same seed gives the same bits.
        resamples: bootstrap resamples.

    Returns:
        The mean over samples. Below some twenty clusters the interval still covers a few points less than
        ``level`` (simulated on normal scores: 91 % at eight, 92 % at fifteen, for 95 %). With a single
        cluster the interval is unbounded; where all clusters have the same mean the bootstrap has nothing to
        resample and the interval is that value (method ``"constant"``).

    Raises:
        ConfigError: on empty or non-finite values, or a wrong number of labels.
    """
    check_level(level)
    scores = as_samples(values, "values")
    index = cluster_index(clusters, len(scores))
    sums, counts = cluster_sums(scores, index), cluster_sums(np.ones_like(scores), index)
    value, groups = float(scores.mean()), len(counts)
    if groups == 1:
        return Estimate(value, -math.inf, math.inf, len(scores), 1, math.nan, level, "one cluster")
    means = sums / counts
    if np.ptp(means) <= 1e-12 * max(1e-300, float(np.abs(means).max())):
        return Estimate(value, value, value, len(scores), groups, 0.0, level, "constant")
    low, high, se = bootstrap(_ratio, (sums, counts), level=level, seed=seed, resamples=resamples)
    return Estimate(value, low, high, len(scores), groups, se, level, "BCa cluster bootstrap")


def paired_difference(
    base: ArrayLike,
    candidate: ArrayLike,
    *,
    clusters: Sequence[object] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of ``candidate - base`` over pairs, with a BCa paired cluster-bootstrap interval.

    Args:
        base: ``[N]`` scores of the baseline.
        candidate: ``[N]`` scores of the candidate, same order.
        clusters: one label per pair (the prompt), as in :func:`mean_estimate`.
        level: coverage of the interval.
        seed: seed of the resampling.
        resamples: bootstrap resamples.

    Returns:
        The mean difference; see :func:`mean_estimate` for the degenerate cases.

    Raises:
        ConfigError: if the lists differ in length, are empty or hold non-finite values.
    """
    base_scores, candidate_scores = as_samples(base, "base"), as_samples(candidate, "candidate")
    if len(base_scores) != len(candidate_scores):
        raise ConfigError(
            f"pairs are needed: the baseline has {len(base_scores)} scores, "
            f"the candidate {len(candidate_scores)}"
        )
    return mean_estimate(
        candidate_scores - base_scores, clusters=clusters, level=level, seed=seed, resamples=resamples
    )


@dataclass(frozen=True)
class PairedTests:
    """Tests of "no difference" on paired scores.

    Attributes:
        p_sign_flip: two-sided permutation p, flipping the sign of whole clusters.
        p_wilcoxon: Wilcoxon signed-rank p on cluster means; 1 where every pair is equal.
        effect_size: mean difference over its standard deviation (of cluster means); 0 where all are equal.
        wins: pairs in which the candidate scored higher.
        ties: pairs with equal scores.
        losses: pairs in which it scored lower.
    """

    p_sign_flip: float
    p_wilcoxon: float
    effect_size: float
    wins: int
    ties: int
    losses: int


def paired_tests(
    base: ArrayLike,
    candidate: ArrayLike,
    *,
    clusters: Sequence[object] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTests:
    """Sign-flip and Wilcoxon tests of paired scores. Arguments as in :func:`paired_difference`.

    Raises:
        ConfigError: if the lists differ in length, are empty or hold non-finite values.
    """
    a, b = as_samples(base, "base"), as_samples(candidate, "candidate")
    if len(a) != len(b):
        raise ConfigError(f"pairs are needed: the baseline has {len(a)} scores, the candidate {len(b)}")
    difference = b - a
    index = cluster_index(clusters, len(a))
    sums = cluster_sums(difference, index)
    means = sums / np.bincount(index)
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    p_wilcoxon = 1.0
    if np.any(means != 0):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # small samples or ties: scipy says it uses the normal approximation
            p_wilcoxon = float(stats.wilcoxon(means).pvalue)
    return PairedTests(
        p_sign_flip=_sign_flip(sums, seed, resamples),
        p_wilcoxon=p_wilcoxon,
        effect_size=float(means.mean()) / spread if spread > 0 else 0.0,
        wins=int((difference > 0).sum()),
        ties=int((difference == 0).sum()),
        losses=int((difference < 0).sum()),
    )


def _sign_flip(sums: FloatArray, seed: int, resamples: int) -> float:
    """Two-sided p of the total under independent sign flips; exact when all flips fit into ``resamples``."""
    observed = abs(float(sums.sum())) * (1 - 1e-12)  # tolerate the rounding of another summation order
    n = len(sums)
    if 2**n <= resamples:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ sums) >= observed))
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, resamples, 1000):
        rows = min(1000, resamples - start)
        signs = 1 - 2 * rng.integers(0, 2, size=(rows, n), dtype=np.int8)
        hits += int((np.abs(signs @ sums) >= observed).sum())
    return (hits + 1) / (resamples + 1)
