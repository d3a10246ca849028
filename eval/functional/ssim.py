"""Structural similarity (Wang et al. 2004) and its multi-scale form (Wang et al. 2003), per image."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.eval.pictures.images import check_pair
from hasten.extend import ConfigError

#: ``valid`` averages over the region the whole window covers, as the reference implementation does;
#: ``torchmetrics`` reflects at the borders and averages over the full image.
Variant = Literal["valid", "torchmetrics"]

WINDOW = 11
SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2

#: Weights of the five scales.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _window(device: torch.device) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def _blur(images: Tensor) -> Tensor:
    """Gaussian average over every full window: ``[B, 1, H, W] -> [B, 1, H - 10, W - 10]``."""
    weights = _window(images.device)
    rows = F.conv2d(images, weights.view(1, 1, -1, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, -1))


def _maps(a: Tensor, b: Tensor, variant: Variant) -> tuple[Tensor, Tensor]:
    """Similarity and contrast-structure maps of float64 images ``[N, C, H, W]`` in 0..255.

    The second covers the valid region in either variant.
    """
    if variant == "torchmetrics":
        pad = [WINDOW // 2] * 4
        a, b = F.pad(a, pad, mode="reflect"), F.pad(b, pad, mode="reflect")
    elif variant != "valid":
        raise ValueError(f"variant must be 'valid' or 'torchmetrics', not {variant!r}")
    n, channels = a.shape[:2]
    # One convolution over the five moments of every channel, each a batch entry of its own.
    moments = _blur(torch.stack([a, b, a * a, b * b, a * b]).flatten(0, 2)[:, None])
    mu_a, mu_b, aa, bb, ab = moments.view(5, n, channels, *moments.shape[-2:])
    variance = (aa - mu_a * mu_a).clamp(min=0) + (bb - mu_b * mu_b).clamp(min=0)
    contrast = (2 * (ab - mu_a * mu_b) + _C2) / (variance + _C2)
    luminance = (2 * mu_a * mu_b + _C1) / (mu_a * mu_a + mu_b * mu_b + _C1)
    inner = slice(WINDOW // 2, -(WINDOW // 2)) if variant == "torchmetrics" else slice(None)
    return luminance * contrast, contrast[..., inner, inner]


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
    check_pair(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise ConfigError(f"SSIM needs sides of at least {WINDOW} pixels, not {a.shape[-1]}x{a.shape[-2]}.")
    # One image at a time: five float64 moments of a large batch would dwarf the batch.
    pairs = zip(a.split(1), b.split(1), strict=True)
    return torch.cat([_maps(x.double(), y.double(), variant)[0].flatten(1).mean(1) for x, y in pairs])


def ms_ssim(a: Tensor, b: Tensor, *, variant: Variant = "valid") -> Tensor:
    """Multi-scale structural similarity of each pair over five scales, halved by 2x2 averages.

    Per scale the contrast-structure term, at the last the full similarity, is averaged over the image and its
    channels, clamped at 0, raised to its weight and multiplied.

    Args:
        a: uint8 ``[N, 3, H, W]``, sides over 160.
        b: uint8, same shape.
        variant: treatment of the borders.

    Returns:
        float64 ``[N]`` in [0, 1].

    Raises:
        ConfigError: if the images can't be compared or are too small for five scales.
    """
    check_pair(a, b)
    if min(a.shape[-2:]) <= (WINDOW - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1):
        raise ConfigError(f"MS-SSIM needs sides over 160 pixels, not {a.shape[-1]}x{a.shape[-2]}; use SSIM.")
    pairs = zip(a.split(1), b.split(1), strict=True)
    return torch.cat([_multi_scale(x.double(), y.double(), variant) for x, y in pairs])


def _multi_scale(a: Tensor, b: Tensor, variant: Variant) -> Tensor:
    product = a.new_ones(len(a))
    last = len(_SCALE_WEIGHTS) - 1
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        similarity, contrast = _maps(a, b, variant)
        term = similarity if scale == last else contrast
        product = product * term.flatten(1).mean(1).clamp(min=0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product
