"""Lanczos resampling as two dense matrices; PyTorch's ``interpolate`` has no such mode."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hasten.schedules.dct import apply_separable

__all__ = ["lanczos_matrix", "lanczos_resize"]

_CACHED_MATRICES = 64
_RADIUS = 3


@lru_cache(maxsize=_CACHED_MATRICES)
def lanczos_matrix(
    source: int,
    target: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One-dimensional Lanczos-3 resampling matrix with half-pixel centres.

    Args:
        source: samples before, at least 1.
        target: samples after, at least 1.
        dtype: floating-point type of the result.
        device: where the result lives.

    Returns:
        (target, source) matrix whose rows sum to 1. When shrinking, the kernel is widened by ``source / target``
        (anti-aliasing). Cached: do not write to it.
    """
    if source < 1 or target < 1:
        raise ValueError(f"sizes must be at least 1, got source={source} and target={target}")
    step = source / target
    widening = max(step, 1.0)
    with torch.inference_mode(False):
        centre = (torch.arange(target, dtype=torch.float64, device="cpu") + 0.5) * step
        sample = torch.arange(source, dtype=torch.float64, device="cpu") + 0.5
        distance = (sample - centre[:, None]) / widening
        weight = torch.sinc(distance) * torch.sinc(distance / _RADIUS)
        weight[distance.abs() >= _RADIUS] = 0.0
        return (weight / weight.sum(dim=1, keepdim=True)).to(device=device, dtype=dtype)


def lanczos_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resize the last two axes with Lanczos-3.

    Args:
        x: floating-point tensor (..., H, W).
        height: new height, at least 1.
        width: new width, at least 1.

    Returns:
        (..., height, width) of the dtype of ``x``, computed in at least single precision. Constants are kept.
    """
    if not x.is_floating_point():
        raise TypeError(f"Lanczos resampling needs a floating-point tensor, got {x.dtype}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = lanczos_matrix(x.shape[-2], height, dtype, x.device)
    columns = lanczos_matrix(x.shape[-1], width, dtype, x.device)
    return apply_separable(x, rows, columns)
