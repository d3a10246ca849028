"""Pixel errors of one image against another, per image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from hasten.eval.pictures.images import check_pair

#: Identical images have infinite PSNR; in a mean they count as this many decibels.
PSNR_CAP = 100.0

#: ITU-R BT.601 luma weights, for the ``y`` variant.
_LUMA = (0.299, 0.587, 0.114)


def psnr(a: Tensor, b: Tensor, *, channel: str = "rgb") -> Tensor:
    """Peak signal-to-noise ratio of each pair, ``10 log10(255^2 / MSE)`` in decibels, by torchmetrics.

    Args:
        a: uint8 ``[N, 3, H, W]``.
        b: uint8, same shape.
        channel: ``"rgb"`` averages over the three channels, ``"y"`` compares BT.601 luma (full range).

    Returns:
        float64 ``[N]``; infinite where the images are identical, so cap them (:func:`capped`) in a mean.

    Raises:
        ConfigError: if the images are not canonical or their shapes differ.
    """
    check_pair(a, b)
    x, y = a.to(torch.float64) / 255, b.to(torch.float64) / 255
    if channel == "y":
        weights = torch.tensor(_LUMA, dtype=torch.float64, device=a.device)
        x, y = (torch.einsum("nchw,c->nhw", image, weights)[:, None] for image in (x, y))
    elif channel != "rgb":
        raise ValueError(f"channel must be 'rgb' or 'y', not {channel!r}")
    # A range of 1 and a base in double precision: torchmetrics takes their logarithms in the number's own precision.
    return peak_signal_noise_ratio(x, y, data_range=1.0, base=np.float64(10), reduction="none", dim=(1, 2, 3))


def capped(values: Tensor) -> Tensor:
    """PSNR values as they enter a mean: at most :data:`PSNR_CAP` decibels."""
    return values.clamp(max=PSNR_CAP)
