"""Conditions that change size together with the noisy latents: clean latents, masks, control features.

They contain no noise: clean content is resized by the band-limited transform at its own amplitude, masks by area.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hasten._adapters.base import LatentSize
from hasten._errors import UnsupportedError
from hasten.schedules.dct import dct_expand, dct_truncate

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Channels", "resize_clean", "resize_features", "resize_mask"]


@dataclass(frozen=True)
class Channels:
    """Roles of the channels of the unpacked latents argument; all others are clean latents or pictures.

    Args:
        noisy: channels that the solver steps. masks: channels that select regions.
        subpixel: side of the blocks of pixels whose masks are the mask channels, row by row; 1 where each mask channel
            is a mask of its own.
    """

    noisy: slice = field(default_factory=lambda: slice(None))
    masks: slice = field(default_factory=lambda: slice(0, 0))
    subpixel: int = 1

    @classmethod
    def leading(cls, noisy: int, masks: slice | None = None, subpixel: int = 1) -> Channels:
        """The first ``noisy`` channels are noisy."""
        return cls(slice(0, noisy), masks or slice(0, 0), subpixel)

    def resized(self, whole: Tensor, noisy: Tensor) -> Tensor:
        """``whole``, (B, C, [F,] H, W), with ``noisy`` in its place and everything else at its size."""
        result = self.fitted(whole, LatentSize(noisy.shape[-2], noisy.shape[-1]))
        result[:, self.noisy] = noisy.to(result.dtype)
        return result

    def fitted(self, whole: Tensor, size: LatentSize) -> Tensor:
        """``whole``, (B, C, [F,] H, W), as masks and clean latents of ``size``."""
        result = resize_clean(whole, size).clone()
        masks = whole[:, self.masks]
        if masks.numel():
            result[:, self.masks] = self._resized_masks(masks, size)
        return result

    def _resized_masks(self, masks: Tensor, size: LatentSize) -> Tensor:
        if self.subpixel == 1:
            return resize_mask(masks, size)
        pixels = torch.nn.functional.pixel_shuffle(masks.movedim(1, -3), self.subpixel)
        fitted = resize_mask(pixels, LatentSize(size.height * self.subpixel, size.width * self.subpixel))
        return torch.nn.functional.pixel_unshuffle(fitted, self.subpixel).movedim(-3, 1)


def resize_clean(content: Tensor, size: LatentSize) -> Tensor:
    """Resize clean content (..., H, W), keeping its amplitude.

    The orthonormal DCT changes the amplitude of a picture by ``sqrt(H W / (h w))``; this undoes it.
    """
    old = content.shape[-2:]
    if old == (size.height, size.width):
        return content
    shrink = size.height <= old[0] and size.width <= old[1]
    change = dct_truncate if shrink else dct_expand
    gain = ((size.height * size.width) / (old[0] * old[1])) ** 0.5
    changed: Tensor = change(content.float(), size.height, size.width) * gain
    return changed.to(content.dtype)


def resize_mask(mask: Tensor, size: LatentSize) -> Tensor:
    """Resize a mask (..., H, W) by area: each entry becomes the selected share of what it covers."""
    if mask.shape[-2:] == (size.height, size.width):
        return mask
    flat = mask.float().reshape(-1, 1, *mask.shape[-2:])
    resized = torch.nn.functional.adaptive_avg_pool2d(flat, (size.height, size.width))
    return resized.view(*mask.shape[:-2], size.height, size.width).to(mask.dtype)


def resize_features(features: Any, before: LatentSize, after: LatentSize) -> Any:
    """Features of a control network for latents of ``before``, resized to the grid of latents of ``after``.

    Args:
        features: a tensor, or lists, tuples and mappings of them: maps (..., h, w) of any level of a U-Net, or tokens
            (B, L, C) of a transformer, frame after frame and row after row.
        before: latent size they were made for.
        after: latent size of the forward.

    Raises:
        UnsupportedError: a tensor has the extent of neither.
    """
    if isinstance(features, torch.Tensor):
        return _resize_features(features, before, after)
    if isinstance(features, Mapping):
        return {key: resize_features(value, before, after) for key, value in features.items()}
    if isinstance(features, (list, tuple)):
        return type(features)(resize_features(value, before, after) for value in features)
    return features


def _resize_features(features: Tensor, before: LatentSize, after: LatentSize) -> Tensor:
    if features.ndim >= 4:
        if features.shape[-2:] == (1, 1):  # averages over the picture
            return features
        level = _level(before, (features.shape[-2], features.shape[-1]))
        if level is not None:
            return resize_clean(features, _halved(after, level))
    elif features.ndim == 3:
        patch = _patch(before, features.shape[1])
        if patch is not None:
            grid = (before.frames or 1, before.height // patch, before.width // patch)
            maps = features.transpose(1, 2).unflatten(2, grid)
            small = resize_clean(maps, LatentSize(after.height // patch, after.width // patch))
            return small.flatten(2).transpose(1, 2)
    raise UnsupportedError(
        f"control features of shape {tuple(features.shape)} do not match a latent grid of {before}; they "
        f"cannot be resized to {after}"
    )


def _halved(size: LatentSize, level: int) -> LatentSize:
    return LatentSize(_halve(size.height, level), _halve(size.width, level))


def _halve(side: int, level: int) -> int:
    for _ in range(level):
        side = -(-side // 2)
    return side


def _level(size: LatentSize, extent: tuple[int, int]) -> int | None:
    """How often latents of ``size`` were halved, rounding up, to have ``extent``."""
    levels = (
        level for level in range(8) if (_halve(size.height, level), _halve(size.width, level)) == extent
    )
    return next(levels, None)


def _patch(size: LatentSize, tokens: int) -> int | None:
    """Latent pixels per side of a token, if ``tokens`` of them make up latents of ``size``."""
    frames = size.frames or 1
    whole = (
        p
        for p in (1, 2, 4)
        if size.height % p == 0
        and size.width % p == 0
        and frames * size.height * size.width == tokens * p * p
    )
    return next(whole, None)
