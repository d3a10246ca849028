"""The formulas of Video-Infinity: merging of moments and of attention segments, masks, rotations.

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
    size = x[0].numel() // groups
    if x.dtype == torch.float32:
        # The statistics of the fused kernel; the reciprocal of its deviation is accurate enough to be inverted.
        elements = x[0, 0].numel()
        _, mean, inverse = torch.native_group_norm(
            x.contiguous(), None, None, len(x), x.shape[1], elements, groups, 0.0
        )
        squares = inverse.square().reciprocal() * size
    else:
        flat = x.reshape(len(x), groups, -1)
        variance, mean = torch.var_mean(
            flat if x.dtype == torch.float64 else flat.float(), dim=2, correction=0
        )
        squares = variance * size
    return torch.stack([torch.full_like(mean, size), mean, squares], dim=2)


def merge_moments(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the union of disjoint parts.

    ``n = sum n_i``, ``mu = sum n_i mu_i / n``, ``M2 = sum M2_i + sum n_i (mu_i - mu)^2``. There is no difference of
    large squares, so the result is stable at any offset. Parts may differ in size.

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
    each = x.shape[1] // mean.shape[1]
    scale = (variance + eps).rsqrt().repeat_interleave(each, 1)
    if weight is not None:
        scale = scale * weight.to(scale.dtype)
    shift = -mean.repeat_interleave(each, 1) * scale
    if bias is not None:
        shift = shift + bias.to(scale.dtype)
    shape = (*scale.shape, *(1,) * (x.ndim - 2))
    # One pass over the data: x * scale + shift.
    return torch.addcmul(shift.view(shape), x.to(scale.dtype), scale.view(shape)).to(x.dtype)


def merge_segments(outputs: Sequence[Tensor], sums: Sequence[Tensor], biases: Sequence[float]) -> Tensor:
    """Attention over the union of disjoint key segments, from the attention over each segment.

    A constant added to all scores of a segment is added to its log-sum-exp, so a bias costs nothing:
    ``w_s = exp(lse_s + beta_s - logsumexp_s(lse_s + beta_s))``, ``out = sum_s w_s out_s``.

    Args:
        outputs: (B, heads, T, D) each.
        sums: log-sum-exp of the scores, (B, heads, T) each, single precision; ``-inf`` for an empty segment.
        biases: ``beta_s``.

    Raises:
        ValueError: there are no segments.
    """
    if not outputs:
        raise ValueError("merge_segments needs at least one segment")
    shifted = torch.stack([lse.float() + beta for lse, beta in zip(sums, biases, strict=True)])
    weights = (shifted - shifted.logsumexp(0)).exp()[..., None]
    merged = (weights * torch.stack([out.float() for out in outputs])).sum(0)
    return merged.to(outputs[0].dtype)


def scope_bias(scope: Scope, biases: tuple[float, float]) -> Tensor | None:
    """Additive mask of temporal attention, in which a token is a frame.

    Args:
        scope: the frames that the clip attends to.
        biases: ``(beta_loc, beta_glob)``.

    Returns:
        (n or 1, keys) in single precision, for keys in the order of ``scope.local`` and then ``scope.chosen``; ``-inf``
        outside a query's window and for the global copy of a frame inside it. ``None`` if nothing is masked.
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
    """Factor for the scores that keeps the entropy of attention at its trained value, ``log |A(a)| / log S0``.

    Args:
        scope: the frames that the clip attends to.
        trained: number of frames ``S0`` that the model was trained with, at least 2.

    Returns:
        (n,) for the frames of the clip. Source: arXiv 2306.08645, equation 7.
    """
    return torch.tensor([math.log(max(scope.seen(frame), 2)) / math.log(trained) for frame in scope.clip])


def rotate(x: Tensor, cos: Tensor, sin: Tensor, halves: int = 0) -> Tensor:
    """Rotate the pairs of channels of ``x`` by angles given as cosine and sine.

    Args:
        x: (..., D) with even D.
        cos: broadcast over ``x``, each value twice.
        sin: likewise.
        halves: 0 to pair neighbouring channels, else the number of equal groups of channels whose first half is paired
            with the second.
    """
    wide = x.float()
    if halves:
        first, second = wide.unflatten(-1, (halves, 2, -1)).unbind(-2)
        return (wide * cos + torch.stack([-second, first], dim=-2).flatten(-3) * sin).to(x.dtype)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)
