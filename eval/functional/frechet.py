"""Frechet distance between Gaussians fitted to two sets of feature vectors.

    d^2 = |mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

(Frechet 1957; Dowson and Landau 1982; with Inception features, "FID", Heusel et al. 2017.) Only the trace of
the root is needed. For any factor ``F F^T = S_x`` the eigenvalues of ``S_x S_y`` are those of the symmetric
``F^T S_y F``, so a Cholesky factor and a symmetric eigensolver give it exactly: no general matrix square
root, no jitter on the diagonal, no imaginary parts to drop. ``eigvalsh(S_x S_y)``, seen in the wild, is
wrong: the product is not symmetric.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.eval.functional.moments import Moments, as_float64
from hasten.extend import ConfigError

_log = logging.getLogger("hasten")


@dataclass(frozen=True)
class Frechet:
    """A squared Frechet distance and its parts.

    Attributes:
        raw: the figure as computed; identical sets may give a negative one within rounding.
        mean_term: ``|mu_x - mu_y|^2``.
        covariance_term: the rest.
    """

    raw: float
    mean_term: float
    covariance_term: float

    @property
    def value(self) -> float:
        """The distance, not below zero."""
        return max(0.0, self.raw)


def covariance_factor(moments: Moments) -> Tensor:
    """A factor ``F`` with ``F F^T`` equal to the covariance.

    Returns:
        float64 ``[d, r]``: lower triangular where the covariance is positive definite (Cholesky), else the
        scaled eigenvectors of its r positive eigenvalues (many times slower).
    """
    covariance = moments.covariance
    factor = _cholesky(moments)
    if factor is not None:
        return factor
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(covariance)
    # n samples span n - 1 directions; beyond them, and below the rounding of the largest, there is only
    # noise.
    keep = values > values[-1].clamp(min=0) * moments.dimension * torch.finfo(torch.float64).eps
    keep[: max(0, moments.dimension - (moments.n - 1))] = False
    return vectors[:, keep] * values[keep].sqrt()


def _cholesky(moments: Moments) -> Tensor | None:
    """The Cholesky factor, or ``None`` where the covariance is singular."""
    if moments.n - 1 < moments.dimension:
        return None
    factor, info = torch.linalg.cholesky_ex(moments.covariance)
    return factor if int(info) == 0 else None


def _distance(x: Moments, y: Moments, trace_root: Tensor) -> Frechet:
    mean_term = float((x.mean - y.mean).square().sum())
    traces = x.covariance.trace() + y.covariance.trace()
    covariance_term = float(traces - 2 * trace_root)
    return Frechet(mean_term + covariance_term, mean_term, covariance_term)


def _check_pair(x: Moments, y: Moments) -> None:
    if x.dimension != y.dimension:
        raise ConfigError(
            f"the two sets have features of {x.dimension} and {y.dimension} dimensions; use the same "
            f"network for both"
        )
    for name, moments in (("first", x), ("second", y)):
        if moments.n < 2:
            raise ConfigError(
                f"a Frechet distance needs at least two samples; the {name} set has {moments.n}"
            )
        if moments.n <= moments.dimension:
            _log.warning(
                "The %s set has %d samples for %d feature dimensions: the distance is exact, but its bias "
                "is large; compare only figures of equal sample size.",
                name,
                moments.n,
                moments.dimension,
            )


def frechet_distance(x: Moments, y: Moments, *, factor_y: Tensor | None = None) -> Frechet:
    """Squared Frechet distance of two sets by their moments.

    Args:
        x: moments of one set.
        y: moments of the other, such as a reference.
        factor_y: ``covariance_factor(y)`` where it is at hand; a reference's is worth keeping.

    Returns:
        The distance in squared feature units.

    Raises:
        ConfigError: with fewer than two samples on a side or differing dimensions.
    """
    _check_pair(x, y)
    if factor_y is None:
        # The trace is symmetric in the two sets: prefer whichever factor is cheap.
        factor_y = _cholesky(y)
        if factor_y is None and _cholesky(x) is not None:
            x, y = y, x
        if factor_y is None:
            factor_y = covariance_factor(y)
    inner = factor_y.T @ x.covariance.to(factor_y.device) @ factor_y
    values = torch.linalg.eigvalsh(inner).clamp(min=0)
    # At most n - 1 of them, the largest, are not zero; the rounding of the others would enter as a root.
    values = values[max(0, len(values) - (x.n - 1)) :]
    return _distance(x, y, values.sqrt().sum())


def frechet_distance_of_features(x: Tensor, y: Tensor) -> Frechet:
    """Squared Frechet distance of two feature matrices ``[N, d]`` and ``[M, d]``.

    With no more samples than dimensions the trace is the nuclear norm of ``X_c Y_c^T / sqrt((n - 1)(m - 1))``
    (centred rows): exact at any rank and cheaper than ``d x d`` matrices.

    Raises:
        ConfigError: on wrong shapes, non-finite values, or fewer than two samples on a side.
    """
    moments = Moments.of(x), Moments.of(y)
    if max(len(x), len(y)) > x.shape[1]:
        return frechet_distance(*moments)
    _check_pair(*moments)
    a, b = as_float64(x) - moments[0].mean, as_float64(y) - moments[1].mean
    scale = ((len(x) - 1) * (len(y) - 1)) ** 0.5
    return _distance(*moments, torch.linalg.svdvals(a @ b.T).sum() / scale)


def frechet_distance_to(features: Tensor, reference: Moments, factor: Tensor) -> Frechet:
    """Squared Frechet distance of a feature matrix to a reference, at the lesser of two costs.

    Args:
        features: ``[N, d]``.
        reference: moments of the reference.
        factor: ``covariance_factor(reference)``.

    Returns:
        As :func:`frechet_distance`; with fewer samples than dimensions from the ``N x N`` Gram matrix.
    """
    moments = Moments.of(features)
    if len(features) > reference.dimension:
        return frechet_distance(moments, reference, factor_y=factor)
    _check_pair(moments, reference)
    root = (as_float64(features) - moments.mean) @ factor / (len(features) - 1) ** 0.5
    values = torch.linalg.eigvalsh(root @ root.T).clamp(min=0)
    # Centring leaves rank N - 1: the smallest eigenvalue is zero, and its rounding would enter as a root.
    return _distance(moments, reference, values[1:].sqrt().sum())


def noise_floor(reference: Moments, n: int, m: int) -> float:
    """Expected Frechet distance of two independent samples of one Gaussian: what no generator can fall below.

    Second-order expansion in the covariance's eigenvalues ``l``, in squared feature units::

        (1/n + 1/m) sum_i l_i  +  1/2 (1/(n-1) + 1/(m-1)) sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)

    Real features have heavier tails, so it guides from below; it says nothing about sets that share their
    seeds.

    Args:
        reference: moments whose covariance is plugged in.
        n: size of one sample.
        m: size of the other.

    Raises:
        ConfigError: if a size is below two.
    """
    if n < 2 or m < 2:
        raise ConfigError(f"a noise floor needs at least two samples on each side, not {n} and {m}")
    values = torch.linalg.eigvalsh(reference.covariance).clamp(min=0)
    values = values[values > 0]
    harmonic = values[:, None] * values[None, :] / (values[:, None] + values[None, :])
    # On the diagonal l_i l_i (1 + 1) / (2 l_i) counts the harmonic term l_i / 2 twice.
    second = harmonic.sum() + harmonic.diagonal().sum()
    floor = (1 / n + 1 / m) * values.sum() + 0.5 * (1 / (n - 1) + 1 / (m - 1)) * second
    return float(floor)
