"""Learned perceptual image patch similarity (Zhang et al. 2018, v0.1) from the activations of any network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Added to the channel norm, as in the original implementation.
_EPSILON = 1e-10

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def lpips_input(images: Tensor) -> Tensor:
    """uint8 ``[N, 3, H, W]`` as LPIPS networks expect them: to [-1, 1], then shifted and scaled per
    channel.
    """
    shift = torch.tensor(_SHIFT, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(_SCALE, device=images.device).view(1, 3, 1, 1)
    return (images.to(torch.float32) / 127.5 - 1 - shift) / scale


def _unit(activation: Tensor) -> Tensor:
    return activation / (activation.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)


def lpips_distance(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Distance from activations: unit-length channels, squared difference, weighted, spatial mean, layers
    summed.

    Args:
        a: activations of the first images, ``[N, C_l, H_l, W_l]`` per layer.
        b: the same of the second images.
        weights: ``[C_l]`` non-negative channel weights per layer.

    Returns:
        float64 ``[N]``, 0 for identical images.

    Raises:
        ValueError: if the numbers of layers differ.
    """
    total = torch.zeros(len(a[0]), dtype=torch.float64, device=a[0].device)
    for x, y, weight in zip(a, b, weights, strict=True):
        difference = (_unit(x) - _unit(y)).square()
        total += torch.einsum("nchw,c->nhw", difference, weight.to(difference)).mean((1, 2)).double()
    return total
