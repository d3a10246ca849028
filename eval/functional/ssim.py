"""Structural similarity (Wang et al. 2004) and its multi-scale form (Wang et al. 2003), per image, by torchmetrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from hasten.eval.pictures.images import check_pair
from hasten.extend import ConfigError

#: ``valid`` averages over the region the whole window covers, as the reference implementation does;
#: ``torchmetrics`` averages over the full image, whose borders are reflected.
Variant = Literal["valid", "torchmetrics"]

WINDOW = 11

#: Weights of the five scales.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _similarity(a: Tensor, b: Tensor, variant: Variant) -> Tensor:
    """Similarity of float64 images in 0..255: window 11x11, sigma 1.5, ``[N]``."""
    whole, picture = structural_similarity_index_measure(
        a, b, data_range=255.0, reduction="none", return_full_image=True
    )
    if variant == "torchmetrics":
        return whole.reshape(len(a))
    border = WINDOW // 2
    return picture[..., border:-border, border:-border].flatten(1).mean(1)


def _contrast(a: Tensor, b: Tensor) -> Tensor:
    """Contrast and structure alone, over the region the whole window covers: ``[N]``."""
    _, contrast = structural_similarity_index_measure(
        a, b, data_range=255.0, reduction="none", return_contrast_sensitivity=True
    )
    return contrast.reshape(len(a))


def _each(a: Tensor, b: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """One image at a time: the float64 moments of a large batch would dwarf the batch."""
    pairs = zip(a.split(1), b.split(1), strict=True)
    return torch.cat([function(x.double(), y.double()) for x, y in pairs])


def ssim(a: Tensor, b: Tensor, *, variant: Variant = "valid") -> Tensor:
    """Structural similarity of each pair: 11x11 Gaussian window, sigma 1.5, per channel, then averaged.

    Args:
        a: uint8 ``[N, 3, H, W]``, sides at least 11.
        b: uint8, same shape.
        variant: treatment of the borders.

    Returns:
        float64 ``[N]``, 1 for identical images.

    Raises:
        ConfigError: if the images can't be compared or are smaller than the window.
    """
    _check(a, b, variant)
    if min(a.shape[-2:]) < WINDOW:
        raise ConfigError(f"SSIM needs sides of at least {WINDOW} pixels, not {a.shape[-1]}x{a.shape[-2]}")
    return _each(a, b, lambda x, y: _similarity(x, y, variant))


def ms_ssim(a: Tensor, b: Tensor, *, variant: Variant = "valid") -> Tensor:
    """Multi-scale structural similarity of each pair over five scales, halved by 2x2 averages.

    Per scale the contrast-structure term, at the last the full similarity, is averaged over the image and its
    channels, clamped at 0, raised to its weight and multiplied.

    Args:
        a: uint8 ``[N, 3, H, W]``, sides over 160.
        b: uint8, same shape.
        variant: treatment of the borders at the last scale.

    Returns:
        float64 ``[N]`` in [0, 1].

    Raises:
        ConfigError: if the images can't be compared or are too small for five scales.
    """
    _check(a, b, variant)
    if min(a.shape[-2:]) <= (WINDOW - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1):
        raise ConfigError(f"MS-SSIM needs sides over 160 pixels, not {a.shape[-1]}x{a.shape[-2]}; use SSIM")
    return _each(a, b, lambda x, y: _multi_scale(x, y, variant))


def _check(a: Tensor, b: Tensor, variant: Variant) -> None:
    check_pair(a, b)
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be 'valid' or 'torchmetrics', not {variant!r}")


def _multi_scale(a: Tensor, b: Tensor, variant: Variant) -> Tensor:
    product = a.new_ones(len(a))
    for weight in _SCALE_WEIGHTS[:-1]:
        product = product * _contrast(a, b).clamp(min=0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product * _similarity(a, b, variant).clamp(min=0) ** _SCALE_WEIGHTS[-1]
