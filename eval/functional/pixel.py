"""Pixel errors of one image against another, per image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.eval.pictures.images import check_pair

#: Identical images have infinite PSNR; in a mean they count as this many decibels.
PSNR_CAP = 100.0

#: ITU-R BT.601 luma weights, for the ``y`` variant.
_LUMA = (0.299, 0.587, 0.114)


def mean_squared_error(a: Tensor, b: Tensor, *, channel: str = "rgb") -> Tensor:
    """Mean squared error of each image pair in grey levels squared.

    Args:
        a: uint8 ``[N, 3, H, W]``.
        b: uint8, same shape.
        channel: ``"rgb"`` averages over the three channels, ``"y"`` compares BT.601 luma (full range).

    Returns:
        float64 ``[N]``.
    """
    check_pair(a, b)
    # Cast first: subtracting uint8 wraps modulo 256 and turns a difference of 16 into none.
    difference = a.to(torch.float64) - b.to(torch.float64)
    if channel == "y":
        weights = torch.tensor(_LUMA, dtype=torch.float64, device=a.device)
        difference = torch.einsum("nchw,c->nhw", difference, weights)
    elif channel != "rgb":
        raise ValueError(f"channel must be 'rgb' or 'y', not {channel!r}")
    return difference.square().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor, *, channel: str = "rgb") -> Tensor:
    """Peak signal-to-noise ratio of each pair, ``10 log10(255^2 / MSE)`` in decibels.

    Args:
        a: uint8 ``[N, 3, H, W]``.
        b: uint8, same shape.
        channel: as in :func:`mean_squared_error`.

    Returns:
        float64 ``[N]``; infinite where the images are identical. Use :func:`summarize_psnr` for a mean.

    Raises:
        ConfigError: if the images are not canonical or their shapes differ.
    """
    return 10 * torch.log10(255.0**2 / mean_squared_error(a, b, channel=channel))


@dataclass(frozen=True)
class PsnrSummary:
    """A set of PSNR values in decibels; identical pairs count as :data:`PSNR_CAP` in ``mean`` and the
    quantiles.
    """

    mean: float
    median: float
    worst_5_percent: float
    n: int
    n_identical: int


def capped(values: Tensor) -> Tensor:
    """PSNR values as they enter a mean: at most :data:`PSNR_CAP` decibels."""
    return values.clamp(max=PSNR_CAP)


def summarize_psnr(values: Tensor) -> PsnrSummary:
    """Summarise per-image PSNR. Squared errors are never pooled over images: 20 and 40 dB average to 30.

    Args:
        values: ``[N]`` decibels, infinite for identical pairs.

    Returns:
        The mean, median and mean of the worst 5 % (at least one image) of the capped values, and the counts.
    """
    finite = capped(values.to(torch.float64)).sort().values
    worst = finite[: max(1, -(-len(finite) // 20))]
    return PsnrSummary(
        mean=float(finite.mean()),
        median=float(finite.quantile(0.5)),
        worst_5_percent=float(worst.mean()),
        n=len(finite),
        n_identical=int(torch.isinf(values).sum()),
    )
