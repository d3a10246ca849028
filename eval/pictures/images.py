"""The one image format every metric takes: uint8 RGB tensors of shape ``[N, 3, H, W]``, 0 to 255.

Anything else is converted here, explicitly, or refused. A float image in [0, 1] that slips into a
preprocessor is rescaled twice without a warning and scores as a black picture, so floats are never accepted
by a metric; they come in through :func:`from_float`, which checks their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hasten.extend import ConfigError
from hasten.files import to_rgb

if TYPE_CHECKING:
    from PIL import Image


def to_uint8(images: Sequence[Image.Image]) -> Tensor:
    """PIL images of one size as a uint8 tensor ``[N, 3, H, W]``.

    Raises:
        ConfigError: on an empty list, differing sizes, transparency or an unknown mode.
    """
    if not images:
        raise ConfigError("no images were given")
    arrays = [np.asarray(to_rgb(image, name=f"image {i}")) for i, image in enumerate(images)]
    sizes = {array.shape[:2] for array in arrays}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ConfigError(f"the images have different sizes ({listed}); one batch needs one size")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def from_float(images: Tensor) -> Tensor:
    """Float images ``[..., 3, H, W]`` in [0, 1] as uint8, rounded (truncating would cost half a grey level).

    Raises:
        ConfigError: if the dtype is not floating, a value is not finite or lies outside [0, 1].
    """
    if not images.is_floating_point():
        raise ConfigError(f"float images in [0, 1] are needed, these are {images.dtype}")
    low, high = (float(x) for x in images.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # NaN fails this as well
        raise ConfigError(f"float images must lie in [0, 1]; these lie in [{low:g}, {high:g}]")
    return (images * 255).round().to(torch.uint8)


def check_images(images: Tensor, *, name: str = "images") -> Tensor:
    """Return ``images`` if it is canonical: uint8, ``[N, 3, H, W]``, N >= 1.

    Raises:
        ConfigError: says what is wrong and which function converts it.
    """
    if not isinstance(images, Tensor):
        raise ConfigError(
            f"{name} must be a uint8 tensor [N, 3, H, W], not {type(images).__name__}; see to_uint8"
        )
    if images.dtype != torch.uint8:
        raise ConfigError(
            f"{name} must be uint8 (0 to 255), not {images.dtype}; use from_float for [0, 1] floats"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ConfigError(
            f"{name} must have the shape [N, 3, H, W] and hold pixels, not {list(images.shape)}"
        )
    return images


def blank(images: Tensor) -> Tensor:
    """Which images are one flat colour: safety-filtered, overflowed or otherwise failed outputs.

    Args:
        images: uint8 ``[N, 3, H, W]``.

    Returns:
        bool ``[N]``. Leave such samples out on *both* sides of a pair, and say how many.
    """
    pixels = check_images(images).flatten(2)
    return (pixels.amax(2) == pixels.amin(2)).all(1)


def check_pair(a: Tensor, b: Tensor) -> None:
    """Refuse two image batches that can't be compared pixel by pixel.

    Raises:
        ConfigError: if either is not canonical or the shapes differ.
    """
    check_images(a, name="the first images")
    check_images(b, name="the second images")
    if a.shape != b.shape:
        raise ConfigError(f"the images to compare have different shapes, {list(a.shape)} and {list(b.shape)}")
