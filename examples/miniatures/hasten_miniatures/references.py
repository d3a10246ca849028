"""All clips that the caption of a moving scene allows, and their exact mean given a noisy clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from hasten.pipelines.mini.render import render
from hasten.pipelines.mini.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Placed
from hasten_miniatures.moving import ACROSS, MOTIONS, MovingScene, render_videos, trajectory
from hasten_miniatures.moving_pools import caption_ids, video_tokenizer
from hasten_miniatures.pools import stored_pool
from hasten_miniatures.video_autoencoder import SIDE

__all__ = ["Posterior", "References"]

_STREAM = 7
"""Seed of the jitter of the references."""


@dataclass(frozen=True)
class References:
    """Some clips for every moving caption of the training split; all other clips are shifted versions of these.

    Shifted latents differ from the latents of a shifted clip, by 3 to 7 % of the energy of the object, and by 40 to
    48 % on grey backgrounds (ten clips). This is accurate enough at noise levels at which only the place is decided.

    Args:
        clips: latents (M, K, C, F, H, W) of K clips for each of M captions, in half precision.
        empty: latents (M, K, C, H, W) of their backgrounds without an object.
        allowed: (M, K, H, W), whether the caption allows the clip after a circular shift by this number of rows down
            and columns to the right.
        ids: token ids (M, 16).
    """

    clips: Tensor
    empty: Tensor
    allowed: Tensor
    ids: Tensor

    @classmethod
    def stored(
        cls, encode: Callable[[Tensor], Tensor], frames: int, each: int, cache: Path | None
    ) -> References:
        """The references in the folder ``cache``; computed and stored if there are none.

        Args:
            encode: maps videos (B, 3, F, H, W) in [-1, 1] to the latents of the denoiser.
            frames: number of frames of a clip.
            each: number of clips per caption.
            cache: a folder, or ``None`` to store nothing.
        """
        path = None if cache is None else cache / f"references-{frames}-{each}.pt"
        return stored_pool(cls, path, lambda: cls._make(encode, frames, each))

    @classmethod
    def _make(cls, encode: Callable[[Tensor], Tensor], frames: int, each: int) -> References:
        from rich.console import Console
        from rich.progress import track

        scenes = _moving_scenes()
        clips, empty, allowed = [], [], []
        for i, scene in enumerate(track(scenes, "encode references", console=Console(stderr=True))):
            first = i * each
            paths = [trajectory(scene, _STREAM, first + k, frames) for k in range(each)]
            clips.append(encode(render_videos([scene] * each, _STREAM, first, SIDE, frames)).half().cpu())
            bare = render([[]] * each, [background for _, background in paths], SIDE)
            empty.append(encode(bare.unsqueeze(2))[:, :, 0].half().cpu())
            allowed.append(torch.stack([_shifts(scene, items[0], clips[0].shape[-1]) for items, _ in paths]))
        ids = caption_ids(video_tokenizer(), [scene.caption() for scene in scenes])
        return cls(torch.stack(clips), torch.stack(empty), torch.stack(allowed), ids)

    def posterior(self, caption: int) -> Posterior:
        """The clips of one caption as a distribution."""
        return Posterior(self.clips[caption].float(), self.empty[caption].float(), self.allowed[caption])


class Posterior:
    """The distribution of a clip x0 given x_t. A priori, x0 is any allowed shift of any clip, with equal probability.

    With x_t = sqrt(a) x0 + sqrt(1 - a) e and e of unit variance, clip x has the weight
    exp((sqrt(a) <x_t, x> - a |x|^2 / 2) / (1 - a)). A shift moves the object over its background, so the inner
    products with x_t at all shifts are one correlation, and the mean over all shifts is one convolution.

    Args:
        clips: latents (K, C, F, H, W).
        empty: latents (K, C, H, W) of their backgrounds without an object.
        allowed: boolean (K, H, W), the allowed shifts by rows down and columns to the right.
    """

    def __init__(self, clips: Tensor, empty: Tensor, allowed: Tensor) -> None:
        self.ground, self.allowed = empty.unsqueeze(2).expand_as(clips), allowed
        objects = clips - self.ground
        self.spectra = torch.fft.rfft2(objects)
        alone = _total(objects.square()) + _total(self.ground.square())
        self.squared = 2 * self._correlated(self.ground) + alone

    def mean(self, noisy: Tensor, alpha: float) -> Tensor:
        """E[x0 | x_t].

        Args:
            noisy: x_t (C, F, H, W).
            alpha: cumulative alpha a of the noise level, in [0, 1).

        Returns:
            (C, F, H, W).
        """
        inner = self._correlated(noisy) + _total(noisy * self.ground)
        logits = (alpha**0.5 * inner - alpha * self.squared / 2) / (1 - alpha)
        weights = logits.masked_fill(~self.allowed, -torch.inf).flatten().softmax(0).view_as(logits)
        moved = torch.fft.rfft2(weights)[:, None, None] * self.spectra
        objects: Tensor = torch.fft.irfft2(moved.sum(0), s=noisy.shape[-2:])
        ground: Tensor = torch.einsum("k,kcfhw->cfhw", weights.sum((1, 2)), self.ground)
        return objects + ground

    def _correlated(self, other: Tensor) -> Tensor:
        """Inner products (K, H, W) of every object with ``other``, by shift."""
        products: Tensor = self.spectra.conj() * torch.fft.rfft2(other)
        inner: Tensor = torch.fft.irfft2(products.sum((1, 2)), s=other.shape[-2:])
        return inner


def _total(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1).view(-1, 1, 1)


def _moving_scenes() -> list[MovingScene]:
    every = (MovingScene(*words) for words in product(SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS))
    return [scene for scene in every if not scene.held_out]


def _shifts(scene: MovingScene, start: Placed, side: int) -> Tensor:
    """Shifts (side, side) that keep the trajectory in the data set: any along the motion, few across it."""
    horizontal = MOTIONS[scene.path][0] != 0
    place = ((start.y if horizontal else start.x) + torch.arange(side) / side) % 1
    inside = (place >= ACROSS[0]) & (place <= ACROSS[1])
    return inside.view(-1, 1).expand(side, side) if horizontal else inside.expand(side, side)
