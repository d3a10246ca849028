"""The moving-scenes data set: captioned videos of a coloured shape that moves in one of four directions, or is still.

An object that leaves the picture re-enters at the opposite border, so a scene can have any number of frames, and its
motion is defined in all of them. Every scene is a pure function of ``(seed, index, split)``; combinations in
:data:`HELD_OUT_MOTIONS` and in :data:`hasten.pipelines.mini.scenes.HELD_OUT` never occur in the training split and
always occur in the held-out split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hasten import ConfigError
from hasten.pipelines.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PLACES,
    SHAPES,
    SIZES,
    ObjectGroup,
    Placed,
    Scene,
    Split,
    place,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ACROSS",
    "HELD_OUT_MOTIONS",
    "MOTIONS",
    "SPEEDS",
    "MovingScene",
    "is_moving_caption",
    "parse_moving_caption",
    "render_videos",
    "sample_moving_scene",
    "trajectory",
]

MOTIONS = {
    "moving left": (-1.0, 0.0),
    "moving right": (1.0, 0.0),
    "moving up": (0.0, -1.0),
    "moving down": (0.0, 1.0),
}
"""Phrase -> direction (x, y), y downwards."""
SPEEDS = (0.03, 0.045)
"""Range of the speed, in shares of the side per frame."""
ACROSS = (0.25, 0.75)
"""Range of the coordinate across the motion, in shares of the side."""
HELD_OUT_MOTIONS: frozenset[tuple[str, str]] = frozenset({("star", "moving left"), ("square", "moving up")})
"""Combinations of shape and motion that do not occur in training."""
STILL = 0.2
"""Share of scenes without motion."""


@dataclass(frozen=True)
class MovingScene:
    """One object on a plain background; ``path`` is a motion of :data:`MOTIONS`, or the place of a still object."""

    size: str
    colour: str
    shape: str
    path: str
    background: str

    def caption(self) -> str:
        """The sentence that describes the scene completely."""
        return f"a {self.size} {self.colour} {self.shape} {self.path} on a {self.background} background"

    @property
    def moves(self) -> bool:
        """Whether the object moves."""
        return self.path in MOTIONS

    @property
    def held_out(self) -> bool:
        """Whether this combination does not occur in training."""
        still = {(self.shape, self.colour), (self.shape, self.path)} & HELD_OUT
        return bool(still) or (self.shape, self.path) in HELD_OUT_MOTIONS

    def as_scene(self, spot: str) -> Scene:
        """The scene of one of its frames, with the object at ``spot``."""
        return Scene((ObjectGroup(1, self.size, self.colour, self.shape, spot),), self.background)


def sample_moving_scene(seed: int, index: int, split: Split = "train") -> MovingScene:
    """Scene number ``index`` of the stream ``seed``; rejection keeps the two splits disjoint."""
    rng = np.random.default_rng((seed, index, 2))
    while True:
        scene = _draw(rng)
        if scene.held_out == (split == "held_out"):
            return scene


def trajectory(
    scene: MovingScene, seed: int, index: int, frames: int
) -> tuple[list[Placed], tuple[float, float, float]]:
    """The object in every frame, with the jitter of ``(seed, index)``, and the background colour, RGB in [0, 1].

    Coordinates are not wrapped; the renderer wraps them at the borders.
    """
    still = scene.as_scene("in the centre" if scene.moves else scene.path)
    (start,), background = place(still, seed, index)
    if not scene.moves:
        return [start] * frames, background
    rng = np.random.default_rng((seed, index, 3))
    speed = rng.uniform(*SPEEDS)
    along, across = rng.uniform(0, 1), rng.uniform(*ACROSS)
    dx, dy = MOTIONS[scene.path]
    x, y = (along, across) if dx else (across, along)
    steps = (frame * speed for frame in range(frames))
    return [replace(start, x=x + dx * step, y=y + dy * step) for step in steps], background


def render_videos(scenes: Sequence[MovingScene], seed: int, first: int, size: int, frames: int) -> Tensor:
    """Render scenes ``first, first + 1, ...`` of the stream ``seed``.

    Returns:
        float32 (B, 3, frames, size, size) in [-1, 1].
    """
    from hasten.pipelines.mini.render import render

    paths = [trajectory(scene, seed, first + i, frames) for i, scene in enumerate(scenes)]
    objects = [[item] for items, _ in paths for item in items]
    backgrounds = [background for items, background in paths for _ in items]
    images = render(objects, backgrounds, size, wrap=True)
    return images.view(len(scenes), frames, 3, size, size).transpose(1, 2)


def is_moving_caption(text: str) -> bool:
    """Whether :func:`parse_moving_caption` understands ``text``."""
    return _CAPTION.fullmatch(text.strip()) is not None


def parse_moving_caption(text: str) -> MovingScene:
    """The scene a caption describes.

    Raises:
        ConfigError: it is not a caption of the data set; the message has an example.
    """
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"not a caption of the moving-scenes data set: {text!r}. Expected, for example, {_EXAMPLE!r}; shapes "
            f"{', '.join(SHAPES)}; colours {', '.join(COLOURS)}; motions {', '.join(MOTIONS)}, or a place; "
            f"backgrounds {', '.join(BACKGROUNDS)}"
        )
    return MovingScene(**match.groupdict())


def _draw(rng: np.random.Generator) -> MovingScene:
    paths = tuple(PLACES) if rng.random() < STILL else tuple(MOTIONS)
    values = (tuple(SIZES), tuple(COLOURS), SHAPES, paths, tuple(BACKGROUNDS))
    return MovingScene(*(choices[int(rng.integers(len(choices)))] for choices in values))


def _named(name: str, values: Sequence[str]) -> str:
    return rf"(?P<{name}>{'|'.join(sorted(values, key=len, reverse=True))})"


_CAPTION = re.compile(
    f"a {_named('size', tuple(SIZES))} {_named('colour', tuple(COLOURS))} {_named('shape', SHAPES)} "
    f"{_named('path', (*MOTIONS, *PLACES))} on a {_named('background', tuple(BACKGROUNDS))} background"
)
_EXAMPLE = "a large red circle moving left on a white background"
