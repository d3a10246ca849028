"""Confidence intervals of set metrics (Frechet distance, MMD) by leaving out groups of samples, alone and
paired.

The reference is taken as given; what varies is the sample of prompts and seeds. The paired difference leaves
out the same prompts on both sides, so whatever the two sides share cancels: with strongly correlated pairs
its interval is many times narrower than that of two separate figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.eval.functional.frechet import covariance_factor, frechet_distance, frechet_distance_to
from hasten.eval.functional.mmd import Kernel, KernelSums, discrepancy, kernel_sums
from hasten.eval.functional.moments import Moments, check_features
from hasten.eval.statistics import Estimate, Grouping, group_samples
from hasten.extend import ConfigError


def _leave_out_distances(
    features: Tensor, groups: NDArray[np.intp], reference: Moments, factor: Tensor
) -> tuple[float, list[float]]:
    """The Frechet distance of all samples and of all but each group."""
    check_features(features)
    number = torch.from_numpy(groups)
    whole = Moments.of(features)
    value = frechet_distance_to(features, reference, factor).raw
    left_out = []
    for group in range(int(number.max()) + 1):
        inside = number == group
        if int((~inside).sum()) > reference.dimension:
            rest = whole.without(Moments.of(features[inside]))
            left_out.append(frechet_distance(rest, reference, factor_y=factor).raw)
        else:
            left_out.append(frechet_distance_to(features[~inside], reference, factor).raw)
    return value, left_out


def frechet_estimate(features: Tensor, reference: Moments, **grouping: Unpack[Grouping]) -> Estimate:
    """Frechet distance to a reference with a grouped-jackknife interval.

    Args:
        features: ``[N, d]``.
        reference: moments of the reference set.
        grouping: see :class:`~hasten.eval.statistics.Grouping`.

    Returns:
        The raw distance; the interval is about its expectation at this N, bias included.

    Raises:
        ConfigError: on unusable features or fewer than two clusters.
    """
    of, estimate = group_samples(len(features), **grouping)
    return estimate(*_leave_out_distances(features, of, reference, covariance_factor(reference)))


def frechet_difference(
    base: Tensor, candidate: Tensor, reference: Moments, **grouping: Unpack[Grouping]
) -> Estimate:
    """Frechet distance of the candidate minus that of the baseline, over pairs.

    Args:
        base: ``[N, d]`` features of the baseline.
        candidate: ``[N, d]``, the same prompts and seeds in the same order.
        reference: moments of the reference set.
        grouping: see :class:`~hasten.eval.statistics.Grouping`.

    Raises:
        ConfigError: if the sets are not paired, or as :func:`frechet_estimate`.
    """
    _check_paired(base, candidate)
    of, estimate = group_samples(len(base), **grouping)
    factor = covariance_factor(reference)
    value_a, without_a = _leave_out_distances(base, of, reference, factor)
    value_b, without_b = _leave_out_distances(candidate, of, reference, factor)
    return estimate(value_b - value_a, np.subtract(without_b, without_a))


def _check_paired(base: Tensor, candidate: Tensor) -> None:
    if base.shape != candidate.shape:
        raise ConfigError(
            f"pairs are needed: the baseline's features have the shape {list(base.shape)}, the candidate's "
            f"{list(candidate.shape)}"
        )


def _jackknife_sums(value_of: Callable[[Tensor], float], count: int) -> tuple[float, list[float]]:
    """A figure of kernel sums over all groups, and without each."""
    every = torch.ones(count, dtype=torch.float64)
    masks = every - torch.eye(count, dtype=torch.float64)
    return value_of(every), [value_of(mask) for mask in masks]


@dataclass(frozen=True)
class Statistic:
    """Which squared discrepancy is computed.

    Attributes:
        kernel: as in :func:`hasten.eval.functional.mmd.kernel_sums`.
        unbiased: the U-statistic, else the V-statistic.
        scale: factor on the result (1000 for CMMD).
    """

    kernel: Kernel
    unbiased: bool = True
    scale: float = 1.0

    def of(self, xx: KernelSums, yy: KernelSums, xy: KernelSums, keep: Tensor | None = None) -> float:
        """The figure of kernel sums; see :func:`hasten.eval.functional.mmd.discrepancy`."""
        return self.scale * discrepancy(xx, yy, xy, unbiased=self.unbiased, keep=keep)


def mmd_estimate(
    features: Tensor, reference: Tensor, statistic: Statistic, **grouping: Unpack[Grouping]
) -> Estimate:
    """Squared MMD to a reference with a grouped-jackknife interval, in one pass over the kernel.

    Args:
        features: ``[N, d]``, normalised already where the metric asks for it.
        reference: ``[M, d]``.
        statistic: which one.
        grouping: see :class:`~hasten.eval.statistics.Grouping`.
    """
    of, estimate = group_samples(len(features), **grouping)
    numbers, kernel = torch.from_numpy(of), statistic.kernel
    xx = kernel_sums(features, None, kernel, groups_x=numbers)
    xy = kernel_sums(features, reference, kernel, groups_x=numbers)
    yy = kernel_sums(reference, None, kernel)
    return estimate(*_jackknife_sums(lambda keep: statistic.of(xx, yy, xy, keep), len(xx.rows)))


def mmd_difference(
    base: Tensor, candidate: Tensor, reference: Tensor, statistic: Statistic, **grouping: Unpack[Grouping]
) -> Estimate:
    """Squared MMD of the candidate minus that of the baseline, over pairs.

    The term within the reference is common to both and is never computed. Arguments as in
    :func:`mmd_estimate`, with ``base`` and ``candidate`` ``[N, d]`` in the same order.

    Raises:
        ConfigError: if the sets are not paired.
    """
    _check_paired(base, candidate)
    of, estimate = group_samples(len(base), **grouping)
    numbers, kernel = torch.from_numpy(of), statistic.kernel
    none = torch.zeros(1, 1, dtype=torch.float64)
    two = torch.full((1,), 2.0, dtype=torch.float64)
    yy = KernelSums(none, none[0], two, two)
    sides = [
        (
            kernel_sums(side, None, kernel, groups_x=numbers),
            kernel_sums(side, reference, kernel, groups_x=numbers),
        )
        for side in (base, candidate)
    ]

    def change(keep: Tensor) -> float:
        a, b = (statistic.of(xx, yy, xy, keep) for xx, xy in sides)
        return b - a

    return estimate(*_jackknife_sums(change, int(of.max()) + 1))
