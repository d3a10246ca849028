"""Resizing, the part of preprocessing that moves published scores most.

Every function takes canonical images (uint8 ``[N, 3, H, W]``) and returns float32 in 0..255 at ``size``
(height, width). Which one made a figure belongs into its fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hasten.eval.pictures.images import check_images

Filter = Literal["bilinear", "bicubic"]
Size = tuple[int, int]

_PIL = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pil_float(images: Tensor, size: Size, kind: Filter = "bicubic") -> Tensor:
    """PIL's antialiased resize of each channel in floating point: no rounding, then clipped to 0..255."""
    channels = check_images(images).cpu().flatten(0, 1).to(torch.float32).numpy()
    resized = [np.asarray(Image.fromarray(c).resize(size[::-1], _PIL[kind])) for c in channels]
    result = torch.from_numpy(np.stack(resized)).clamp_(0, 255)
    return result.view(len(images), 3, *size).to(images.device)


def pil_uint8(images: Tensor, size: Size, kind: Filter = "bicubic") -> Tensor:
    """PIL's antialiased resize of the 8-bit image, which rounds."""
    pixels = check_images(images).permute(0, 2, 3, 1).cpu().numpy()
    resized = [np.asarray(Image.fromarray(p).resize(size[::-1], _PIL[kind])) for p in pixels]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float().to(images.device)


def torch_antialias(images: Tensor, size: Size, kind: Filter = "bilinear") -> Tensor:
    """Torch's antialiased resize; equal to :func:`pil_float` to a few thousandths of a level, and batched."""
    x = check_images(images).float()
    return F.interpolate(x, size, mode=kind, align_corners=False, antialias=True).clamp(0, 255)


def torch_noalias(images: Tensor, size: Size, kind: Filter = "bilinear") -> Tensor:
    """Torch's resize without antialiasing, as older tools do. Far from the above when shrinking."""
    return F.interpolate(check_images(images).float(), size, mode=kind, align_corners=False)


def tf1_bilinear(images: Tensor, size: Size) -> Tensor:
    """TensorFlow 1's bilinear resize: no antialiasing, and source coordinates without the half-pixel
    offset.
    """
    x = check_images(images).float()
    for axis, target in ((2, size[0]), (3, size[1])):
        source = x.shape[axis]
        position = torch.arange(target, device=x.device, dtype=torch.float32) * (source / target)
        lower = position.floor().long().clamp(max=source - 1)
        upper = (lower + 1).clamp(max=source - 1)
        shape = [-1 if i == axis else 1 for i in range(4)]
        weight = (position - lower).view(shape)
        x = x.index_select(axis, lower) * (1 - weight) + x.index_select(axis, upper) * weight
    return x


Resizer = Callable[[Tensor, Size], Tensor]


def crop_to_square(images: Tensor) -> Tensor:
    """The largest central square, with offsets rounded down."""
    height, width = check_images(images).shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def short_side_size(height: int, width: int, side: int) -> Size:
    """(height, width) with the shorter side equal to ``side`` and the longer one in proportion, rounded
    down.
    """
    if height <= width:
        return side, max(side, int(side * width / height))
    return max(side, int(side * height / width)), side


def short_side_then_crop(images: Tensor, side: int) -> Tensor:
    """CLIP's geometry: shorter side to ``side`` (8-bit bicubic), then the central ``side x side``.

    Returns:
        float32 ``[N, 3, side, side]`` in 0..255. The ends of a wide image are lost.
    """
    resized = pil_uint8(images, short_side_size(images.shape[-2], images.shape[-1], side), "bicubic")
    top, left = (resized.shape[-2] - side) // 2, (resized.shape[-1] - side) // 2
    return resized[..., top : top + side, left : left + side]


#: Mean and standard deviation of CLIP's pixels in [0, 1]; BLIP and BLIP-2 use them too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_normalize(pixels: Tensor) -> Tensor:
    """float 0..255 ``[N, 3, H, W]`` to CLIP's normalised units."""
    mean = pixels.new_tensor(CLIP_MEAN).view(1, 3, 1, 1)
    std = pixels.new_tensor(CLIP_STD).view(1, 3, 1, 1)
    return (pixels / 255 - mean) / std
