"""Outlines of pictures: the condition of ``mini/t2i-outlines``, and how well a picture follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CONTRAST", "agreement", "outlines", "to_tensor"]

CONTRAST = 0.3
"""Smallest step of any colour channel, of a range of 2, that is an outline."""


def outlines(images: Tensor) -> Tensor:
    """White lines on black, one or two pixels wide, where the colour changes.

    Args:
        images: (B, 3, H, W) in [-1, 1].

    Returns:
        (B, 3, H, W), each entry -1 or 1.
    """
    padded = F.pad(images, (0, 1, 0, 1), mode="replicate")
    highest = F.max_pool2d(padded, 2, stride=1)
    lowest = -F.max_pool2d(-padded, 2, stride=1)
    lines = (highest - lowest).amax(1, keepdim=True) > CONTRAST
    return (lines.float() * 2 - 1).expand_as(images).contiguous()


def agreement(images: Tensor, condition: Tensor, tolerance: int = 2) -> Tensor:
    """How well the outlines of pictures match a condition: the F1 score of their pixels, (B,) in [0, 1].

    Args:
        images: (B, 3, H, W) in [-1, 1].
        condition: (B, 3, H, W), what :func:`outlines` returned.
        tolerance: pixels that an outline may be off.
    """
    drawn, asked = outlines(images)[:, :1] > 0, condition[:, :1] > 0
    precision = _share(drawn, _grown(asked, tolerance))
    recall = _share(asked, _grown(drawn, tolerance))
    return 2 * precision * recall / (precision + recall).clamp(min=1e-6)


def to_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures of one size as float32 (B, 3, H, W) in [-1, 1]."""
    stack = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask.float(), 2 * pixels + 1, stride=1, padding=pixels) > 0


def _share(part: Tensor, of: Tensor) -> Tensor:
    """Share of the pixels of ``part`` that are in ``of``; 0 where there are none."""
    return (part & of).sum((1, 2, 3)) / part.sum((1, 2, 3)).clamp(min=1)
