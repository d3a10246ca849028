"""Jackknife intervals of set metrics: exact leave-one-group-out values, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jackknife import grouped_jackknife
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.frechet import frechet_distance_of_features
from hasten.eval.functional.mmd import cmmd, gaussian_kernel, kid, polynomial_kernel
from hasten.eval.functional.moments import Moments
from hasten.eval.metrics.intervals import (
    Statistic,
    frechet_difference,
    frechet_estimate,
    mmd_difference,
    mmd_estimate,
)
from hasten.eval.statistics import assign_groups


def draw(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


@pytest.mark.parametrize(("n", "d"), [(60, 6), (20, 30), (31, 30)])
def test_frechet_equals_the_jackknife_of_the_figure(n: int, d: int) -> None:
    x, y = draw(n, d, 0, 0.2), draw(80, d, 1)
    ours = frechet_estimate(x, Moments.of(y), groups=5, seed=3)
    groups = assign_groups(n, 5, seed=3)
    slow = grouped_jackknife(
        lambda keep: frechet_distance_of_features(x[torch.from_numpy(keep)], y).raw, groups
    )
    assert ours.value == pytest.approx(slow.value, rel=1e-7)
    assert ours.se == pytest.approx(slow.se, rel=1e-6)


def test_mmd_equals_the_jackknife_of_the_figure() -> None:
    x, y = draw(40, 5, 0, 0.2), draw(50, 5, 1)
    groups = assign_groups(40, 8, seed=2)
    slow = grouped_jackknife(lambda keep: kid(x[torch.from_numpy(keep)], y), groups)
    ours = mmd_estimate(x, y, Statistic(polynomial_kernel), groups=8, seed=2)
    assert (ours.value, ours.se) == pytest.approx((slow.value, slow.se), rel=1e-9)


def test_paired_difference_is_the_difference() -> None:
    reference, base = draw(80, 4, 0), draw(50, 4, 1)
    candidate = base + 0.03 * draw(50, 4, 2, 1.0)
    moments, kernel = Moments.of(reference), gaussian_kernel(1.5)
    frechet = frechet_difference(base, candidate, moments)
    each = [frechet_estimate(side, moments) for side in (candidate, base)]
    assert frechet.value == pytest.approx(each[0].value - each[1].value, rel=1e-9)
    assert frechet.se < min(side.se for side in each) / 2
    mmd = mmd_difference(base, candidate, reference, Statistic(kernel))
    values = [mmd_estimate(side, reference, Statistic(kernel)).value for side in (candidate, base)]
    assert mmd.value == pytest.approx(values[0] - values[1], rel=1e-9)
    biased = mmd_difference(base, candidate, reference, Statistic(kernel, unbiased=False, scale=1000.0))
    unit = [torch.nn.functional.normalize(s) for s in (base, candidate, reference)]
    expected = cmmd(unit[1], unit[2]).biased - cmmd(unit[0], unit[2]).biased
    ours = mmd_difference(*unit, Statistic(gaussian_kernel(10.0), unbiased=False, scale=1000.0))
    assert ours.value == pytest.approx(expected, rel=1e-9)
    assert biased.level == 0.95


def test_clusters_stay_together() -> None:
    x, y = draw(40, 3, 0), draw(40, 3, 1)
    prompts = [i // 4 for i in range(40)]
    figure = frechet_estimate(x, Moments.of(y), clusters=prompts)
    assert figure.clusters == 10
    assert figure.method == "10-group jackknife"


def test_pairs_are_needed() -> None:
    reference = draw(20, 3, 0)
    with pytest.raises(ConfigError, match="pairs are needed"):
        frechet_difference(draw(9, 3, 1), draw(8, 3, 2), Moments.of(reference))
    with pytest.raises(ConfigError, match="pairs are needed"):
        mmd_difference(draw(9, 3, 1), draw(8, 3, 2), reference, Statistic(polynomial_kernel))


@pytest.mark.slow
def test_coverage_of_frechet_intervals() -> None:
    """The expectation at this N is what the interval is about; it is estimated from the same replicates."""
    d, n, repeats = 8, 300, 200
    reference = Moments(10**6, torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64) * 10**6)
    alone, paired = [], []
    for seed in range(repeats):
        base = draw(n, d, seed, 0.1)
        candidate = base + 0.2 * draw(n, d, seed + 10**6)
        alone.append(frechet_estimate(base, reference, seed=seed))
        paired.append(frechet_difference(base, candidate, reference, seed=seed))
    for figures in (alone, paired):
        truth = np.mean([f.value for f in figures])
        covered = np.mean([f.low <= truth <= f.high for f in figures])
        assert 0.90 <= covered <= 1.0
