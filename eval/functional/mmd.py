"""Maximum mean discrepancy between two sets of feature vectors: KID and CMMD.

Both reduce to sums of a kernel over pairs. They are computed once, in float64, block by block, as a matrix of
sums between *groups* of samples. The figure, its biased and unbiased forms, a leave-one-group-out jackknife
and a paired difference are then arithmetic on that small matrix; no pass over the features is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.eval.functional.moments import as_float64, check_features
from hasten.extend import ConfigError

#: Rows and columns of the kernel matrix in memory at once.
BLOCK = 2048

#: Bandwidth of the published CMMD.
CMMD_SIGMA = 10.0

#: The published CMMD is a thousand times the squared discrepancy.
CMMD_SCALE = 1000.0

Kernel = Callable[[Tensor, Tensor], Tensor]


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel ``(x . y / d + 1)^3`` (Binkowski et al. 2018): ``[N, d], [M, d] -> [N, M]``."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(sigma: float) -> Kernel:
    """``exp(-|x - y|^2 / (2 sigma^2)) - 1``.

    The constant 1 cancels from every discrepancy. Leaving it out (``expm1``) keeps the digits: at CMMD's
    bandwidth unit vectors have kernel values in [0.98, 1], whose sums would cancel.
    """
    if not sigma > 0:
        raise ConfigError(f"a kernel bandwidth must be positive, not {sigma}")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * (x @ y.T)
        return torch.expm1(squared.clamp(min=0) / (-2 * sigma * sigma))

    return kernel


@dataclass(frozen=True)
class KernelSums:
    """Kernel sums between groups of two sets (or of a set and itself).

    Attributes:
        sums: float64 ``[G, H]``, sum of ``k(x_i, y_j)`` over i in group g and j in group h.
        diagonal: float64 ``[G]``, sum of ``k(x_i, x_i)`` in group g; zeros between different sets.
        rows: ``[G]``, samples of x in group g, float64.
        columns: ``[H]``, samples of y in group h.
    """

    sums: Tensor
    diagonal: Tensor
    rows: Tensor
    columns: Tensor


def _group_numbers(groups: Tensor | None, n: int, device: torch.device) -> tuple[Tensor, int]:
    if groups is None:
        return torch.zeros(n, dtype=torch.long, device=device), 1
    if groups.shape != (n,):
        raise ConfigError(f"there are {len(groups)} group numbers for {n} samples")
    numbers = groups.to(device=device, dtype=torch.long)
    return numbers, int(numbers.max()) + 1


def kernel_sums(
    x: Tensor,
    y: Tensor | None,
    kernel: Kernel,
    *,
    groups_x: Tensor | None = None,
    groups_y: Tensor | None = None,
    block: int = BLOCK,
) -> KernelSums:
    """Sum a kernel over all pairs, by group, in O(block * block) memory.

    Args:
        x: ``[N, d]`` of any float dtype; computed in float64.
        y: ``[M, d]``, or ``None`` for the pairs within ``x``.
        kernel: ``[n, d], [m, d] -> [n, m]``.
        groups_x: ``[N]`` group numbers from 0; one group where not given.
        groups_y: the same for ``y``.
        block: rows and columns at once.

    Raises:
        ConfigError: on wrong shapes, differing dimensions or non-finite values.
    """
    check_features(x)
    if y is not None:
        check_features(y)
        if x.shape[1] != y.shape[1]:
            raise ConfigError(f"the two sets have features of {x.shape[1]} and {y.shape[1]} dimensions")
    other = x if y is None else y
    device = x.device if x.device.type != "mps" else torch.device("cpu")
    of_x, count_x = _group_numbers(groups_x, len(x), device)
    of_y, count_y = (of_x, count_x) if y is None else _group_numbers(groups_y, len(other), device)
    sums = torch.zeros(count_x, count_y, dtype=torch.float64, device=device)
    diagonal = sums.new_zeros(count_x)
    starts = [(i, j) for i in range(0, len(x), block) for j in range(0, len(other), block)]
    for i, j in starts:
        rows_of, columns_of = of_x[i : i + block], of_y[j : j + block]
        matrix = kernel(as_float64(x[i : i + block]), as_float64(other[j : j + block]).to(device))
        if y is None and i == j:
            diagonal.index_add_(0, rows_of, matrix.diagonal())
        by_column = matrix.new_zeros(len(matrix), count_y).index_add_(1, columns_of, matrix)
        sums.index_add_(0, rows_of, by_column)
    rows = torch.bincount(of_x, minlength=count_x).to(torch.float64)
    columns = rows if y is None else torch.bincount(of_y, minlength=count_y).to(torch.float64)
    return KernelSums(sums, diagonal, rows, columns)


def _within(sums: KernelSums, keep: Tensor, unbiased: bool) -> Tensor:
    """Mean kernel within a set, over the kept groups."""
    total = keep @ sums.sums @ keep
    n = keep @ sums.rows
    if not unbiased:
        return total / n**2
    if n < 2:
        raise ConfigError("the unbiased discrepancy needs at least two samples on each side")
    return (total - keep @ sums.diagonal) / (n * (n - 1))


def _between(sums: KernelSums, keep: Tensor) -> Tensor:
    total = (keep @ sums.sums).sum()
    return total / ((keep @ sums.rows) * sums.columns.sum())


def discrepancy(
    xx: KernelSums, yy: KernelSums, xy: KernelSums, *, unbiased: bool, keep: Tensor | None = None
) -> float:
    """Squared MMD from kernel sums.

    Args:
        xx: sums within the first set.
        yy: sums within the second.
        xy: sums between them, grouped on the first side as ``xx``.
        unbiased: U-statistic without the diagonal (may be negative), else the V-statistic with it.
        keep: float64 ``[G]`` of 0 and 1, the groups of the first set to use.
    """
    keep = torch.ones_like(xx.rows) if keep is None else keep.to(xx.rows)
    every = torch.ones_like(yy.rows)
    value = _within(xx, keep, unbiased) + _within(yy, every, unbiased) - 2 * _between(xy, keep)
    return float(value)


@dataclass(frozen=True)
class Discrepancy:
    """A squared discrepancy in both forms; the unbiased one may be negative, and is ``None`` for one
    sample.
    """

    biased: float
    unbiased: float | None


def _both(x: Tensor, y: Tensor, kernel: Kernel, scale: float) -> Discrepancy:
    xx, yy, xy = kernel_sums(x, None, kernel), kernel_sums(y, None, kernel), kernel_sums(x, y, kernel)
    biased = scale * discrepancy(xx, yy, xy, unbiased=False)
    if min(len(x), len(y)) < 2:
        return Discrepancy(biased, None)
    return Discrepancy(biased, scale * discrepancy(xx, yy, xy, unbiased=True))


def normalized(features: Tensor) -> Tensor:
    """Rows scaled to unit length in float64.

    Raises:
        ConfigError: if a row is zero or not finite.
    """
    x = as_float64(check_features(features))
    norm: Tensor = x.norm(dim=1, keepdim=True)
    if bool((norm == 0).any()):
        raise ConfigError(f"embedding {int((norm == 0).flatten().nonzero()[0])} is zero and has no direction")
    return x / norm


def of_directions(kernel: Kernel) -> Kernel:
    """``kernel`` of the rows scaled to unit length."""
    return lambda x, y: kernel(normalized(x), normalized(y))


def cmmd(x: Tensor, y: Tensor, *, sigma: float = CMMD_SIGMA) -> Discrepancy:
    """CLIP maximum mean discrepancy (Jayasumana et al. 2024), times 1000 as published.

    At sigma = 10 it is, to about one per cent, ten times the squared distance of the mean embeddings:
    published CMMD hardly sees diversity.

    Args:
        x: ``[N, d]`` image embeddings; normalised here.
        y: ``[M, d]``.
        sigma: bandwidth of the Gaussian kernel.

    Returns:
        ``biased`` is the published estimator; ``unbiased`` leaves out the diagonal.
    """
    return _both(x, y, of_directions(gaussian_kernel(sigma)), CMMD_SCALE)


def median_bandwidth(
    reference: Tensor, *, limit: int = 2000, seed: int = 0, directions: bool = False
) -> float:
    """Median distance between different rows of ``reference``, a bandwidth at the scale of the data.

    Args:
        reference: ``[N, d]``, N >= 2.
        limit: rows used, drawn with ``seed`` where there are more.
        seed: of the draw.
        directions: of the rows scaled to unit length.

    Raises:
        ConfigError: with fewer than two rows, or if all are equal.
    """
    if len(check_features(reference)) < 2:
        raise ConfigError("a median distance needs at least two samples")
    rows = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))[:limit]
    x = normalized(reference[rows]) if directions else as_float64(reference[rows])
    median = float(torch.pdist(x).median())
    if median == 0:
        raise ConfigError(
            "more than half of the reference embeddings are equal; their median distance is zero"
        )
    return median


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel Inception distance, the full unbiased statistic over all samples (no subsets).

    Args:
        x: ``[N, d]`` features, N >= 2, not normalised.
        y: ``[M, d]``, M >= 2.

    Returns:
        Squared discrepancy; negative values are valid.
    """
    value = _both(x, y, polynomial_kernel, 1.0).unbiased
    if value is None:
        raise ConfigError("KID needs at least two samples on each side")
    return value
