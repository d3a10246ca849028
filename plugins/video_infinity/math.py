"""The formulas of Video-Infinity: moments that merge, attention segments that merge, masks, rotations.

Pure tensor code, without processes. Source: arXiv 2406.16260, section 4; the merge of moments is Chan, Golub and
LeVeque (1979), the merge of attention segments the online softmax of Milakov and Gimelshein, arXiv 1805.02867.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.schedules.clips import Scope

__all__ = [
    "entropy_scale",
    "group_moments",
    "merge_moments",
    "merge_segments",
    "normalise",
    "rotate",
    "scope_bias",
]


def group_moments(x: Tensor, groups: int) -> Tensor:
    """Count, mean and sum of squared deviations of each group of channels.

    Args:
        x: (B, C, ...), any floating dtype; summed in single precision or better.
        groups: number of groups that C is divided into.

    Returns:
        (B, groups, 3).
    """
    flat = x.reshape(len(x), groups, -1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    variance, mean = torch.var_mean(flat, dim=2, correction=0)
    count = torch.full_like(mean, flat.shape[2])
    return torch.stack([count, mean, variance * flat.shape[2]], dim=2)


def merge_moments(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the union of disjoint parts.

    ``n = sum n_i``, ``mu = sum n_i mu_i / n``, ``M2 = sum M2_i + sum n_i (mu_i - mu)^2``: no difference of large
    squares, so it is stable at any offset, and parts may differ in size.

    Args:
        parts: (parts, B, groups, 3) from :func:`group_moments`.

    Returns:
        Mean and variance, each (B, groups).
    """
    count, mean, squares = parts.unbind(-1)
    total = count.sum(0)
    merged = (count * mean).sum(0) / total
    deviation = squares.sum(0) + (count * (mean - merged).square()).sum(0)
    return merged, deviation / total


def normalise(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Group normalisation of ``x`` (B, C, ...) by given statistics (B, groups), in the dtype of ``x``."""
    groups = mean.shape[1]
    flat = x.reshape(len(x), groups, -1).to(mean.dtype)
    flat = (flat - mean[..., None]) * (variance + eps).rsqrt()[..., None]
    result = flat.view(x.shape)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    if weight is not None:
        result = result * weight.view(shape).to(result.dtype)
    if bias is not None:
        result = result + bias.view(shape).to(result.dtype)
    return result.to(x.dtype)


def merge_segments(outputs: Sequence[Tensor], sums: Sequence[Tensor], biases: Sequence[float]) -> Tensor:
    """Attention over the union of disjoint key segments, from attention over each of them.

    A constant added to all scores of a segment adds itself to the segment's log-sum-exp, so a bias costs nothing:
    ``w_s = exp(lse_s + beta_s - logsumexp_s(lse_s + beta_s))``, ``out = sum_s w_s out_s``.

    Args:
        outputs: (B, heads, T, D) each.
        sums: log-sum-exp of the scores, (B, heads, T) each, single precision; ``-inf`` for an empty segment.
        biases: ``beta_s``.

    Raises:
        ValueError: there is no segment.
    """
    if not outputs:
        raise ValueError("merge_segments needs at least one segment")
    shifted = torch.stack([lse.float() + beta for lse, beta in zip(sums, biases, strict=True)])
    weights = (shifted - shifted.logsumexp(0)).exp()[..., None]
    merged = (weights * torch.stack([out.float() for out in outputs])).sum(0)
    return merged.to(outputs[0].dtype)


def scope_bias(scope: Scope, biases: tuple[float, float]) -> Tensor | None:
    """Additive mask of temporal attention, where a token is a frame.

    Args:
        scope: what the clip attends to.
        biases: ``(beta_loc, beta_glob)``.

    Returns:
        (n or 1, keys) in single precision, for keys in the order of ``scope.local`` and then ``scope.chosen``; ``-inf``
        outside a query's window and for the global copy of a frame inside it. ``None`` where nothing is masked.
    """
    local, rows = scope.local, []
    for frame in scope.clip[:1] if scope.block else scope.clip:
        near = scope.near(frame)
        row = [biases[0] if key in near else -math.inf for key in local]
        row += [-math.inf if key in near else biases[1] for key in scope.chosen]
        rows.append(row)
    if all(value == 0.0 for row in rows for value in row):
        return None
    return torch.tensor(rows)


def entropy_scale(scope: Scope, trained: int) -> Tensor:
    """Factor of the scores that keeps the entropy of attention at its trained value: ``log |A(a)| / log S0``.

    Args:
        scope: what the clip attends to.
        trained: number of frames ``S0`` that the model was trained with, at least 2.

    Returns:
        (n,) for the frames of the clip. Source: arXiv 2306.08645, equation 7.
    """
    return torch.tensor([math.log(max(scope.seen(frame), 2)) / math.log(trained) for frame in scope.clip])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of neighbouring channels of ``x`` by angles given as cosine and sine.

    Args:
        x: (..., D) with even D.
        cos: broadcast over ``x``, each value twice.
        sin: likewise.
    """
    wide = x.float()
    even, odd = wide[..., 0::2], wide[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)
