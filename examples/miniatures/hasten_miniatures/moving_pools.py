"""Captioned moving scenes as training data: tokenizer, and clips that are encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten_miniatures.moving import MOTIONS, MovingScene, render_videos, sample_moving_scene
from hasten_miniatures.pools import stored_pool
from hasten_miniatures.text import build_tokenizer, number_words, tokenize, vocabulary
from hasten_miniatures.video_autoencoder import SIDE

__all__ = ["MAX_TOKENS", "ClipPool", "ClipPools", "caption_ids", "training_scene", "video_tokenizer"]

MAX_TOKENS = 16
"""Length of the longest caption (14 tokens with start and end), and a margin."""


def video_tokenizer() -> Any:
    """The word tokenizer with the words of motions."""
    return build_tokenizer(number_words([*vocabulary(), *MOTIONS]), MAX_TOKENS)


def caption_ids(tokenizer: Any, captions: list[str]) -> Tensor:
    """Token ids (B, 16) of captions, padded."""
    ids: Tensor = tokenize(tokenizer, captions).input_ids
    return ids


def training_scene(frames: int, index: int) -> MovingScene:
    """Scene ``index`` of a pool. At least half of the single frames are still, so their captions name the place."""
    scene = sample_moving_scene(frames, index)
    while frames == 1 and index % 2 and scene.moves:
        index += 1_000_000
        scene = sample_moving_scene(frames, index)
    return scene


@dataclass(frozen=True)
class ClipPool:
    """Training clips of one length, encoded once.

    Args:
        latents: latents (N, C, T, 16, 16), the input of the denoiser, in half precision.
        ids: token ids (N, 16) of the captions.
    """

    latents: Tensor
    ids: Tensor

    @classmethod
    def make(cls, encode: Callable[[Tensor], Tensor], count: int, frames: int) -> ClipPool:
        """Render and encode ``count`` clips of ``frames`` frames; each length has different scenes."""
        from rich.console import Console
        from rich.progress import track

        latents, captions, chunk = [], [], 16
        for first in track(range(0, count, chunk), f"encode {frames} frames", console=Console(stderr=True)):
            scenes = [training_scene(frames, i) for i in range(first, first + chunk)]
            clips = encode(render_videos(scenes, frames, first, SIDE, frames))
            latents.append(clips.to("cpu", torch.float16))
            captions += [scene.caption() for scene in scenes]
        return cls(torch.cat(latents), caption_ids(video_tokenizer(), captions))


class ClipPools:
    """Pools by number of frames, each encoded when it is first used.

    Args:
        encode: maps videos (B, 3, F, H, W) in [-1, 1] to the latents of the denoiser.
        counts: number of frames -> clips in the pool, multiples of 16.
        cache: folder that stores the pools for a resumed run, or ``None``.
    """

    def __init__(
        self, encode: Callable[[Tensor], Tensor], counts: Mapping[int, int], cache: Path | None
    ) -> None:
        self.encode, self.counts, self.cache = encode, counts, cache
        self._made: dict[int, ClipPool] = {}

    def __getitem__(self, frames: int) -> ClipPool:
        if frames not in self._made:
            count = self.counts[frames]
            path = None if self.cache is None else self.cache / f"pool-{frames}-{count}.pt"
            make = partial(ClipPool.make, self.encode, count, frames)
            self._made[frames] = stored_pool(ClipPool, path, make)
        return self._made[frames]
