"""The captioned-scenes data set: simple coloured shapes, with captions that state everything a judge can check.

A scene is one group of equal objects ("three small green stars at the top on a black background") or two objects
side by side or one above the other. Every scene is a pure function of ``(seed, index, split)``. Combinations in
:data:`HELD_OUT` never occur in the training split and always occur in the held-out split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.extend import ConfigError, Split

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "COUNTS",
    "HELD_OUT",
    "PLACES",
    "ROW_OFFSETS",
    "SHAPES",
    "SIZES",
    "ObjectGroup",
    "Placed",
    "Scene",
    "Split",
    "is_scene_caption",
    "parse_caption",
    "place",
    "sample_scene",
]

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 90, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
    "black": (20, 20, 20),
    "pink": (250, 190, 210),
}
SIZES = {"small": (0.085, 0.105), "large": (0.16, 0.195)}
"""Radius range as a share of the image side. The gap between them keeps the size of an object well defined."""
COUNTS = {"a": 1, "two": 2, "three": 3}
PLACES = {
    "at the top left": (0.25, 0.25),
    "at the top": (0.5, 0.25),
    "at the top right": (0.75, 0.25),
    "on the left": (0.25, 0.5),
    "in the centre": (0.5, 0.5),
    "on the right": (0.75, 0.5),
    "at the bottom left": (0.25, 0.75),
    "at the bottom": (0.5, 0.75),
    "at the bottom right": (0.75, 0.75),
}
"""Phrase -> centre (x, y) of the group, in shares of the side, y downwards."""

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("circle", "purple"),
        ("triangle", "blue"),
        ("star", "orange"),
        ("square", "at the top left"),
        ("cross", "at the bottom right"),
    }
)
"""Combinations (shape, colour) and (shape, place) that do not occur in training."""

_ROW_PLACES = ("at the top", "in the centre", "at the bottom")
_PAIRS = (("on the left", "on the right"), ("at the top", "at the bottom"))
ROW_OFFSETS = {1: (0.0,), 2: (-0.15, 0.15), 3: (-0.25, 0.0, 0.25)}
_COUNT_WORDS = {number: word for word, number in COUNTS.items()}


@dataclass(frozen=True)
class ObjectGroup:
    """``count`` equal objects. Several objects are small and in a row."""

    count: int
    size: str
    colour: str
    shape: str
    place: str

    def phrase(self) -> str:
        """The group in words."""
        shape = self.shape if self.count == 1 else _plural(self.shape)
        return f"{_COUNT_WORDS[self.count]} {self.size} {self.colour} {shape} {self.place}"

    @property
    def held_out(self) -> bool:
        """Whether this combination does not occur in training."""
        return (self.shape, self.colour) in HELD_OUT or (self.shape, self.place) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """One group, or two single objects in reading order, on a plain background."""

    groups: tuple[ObjectGroup, ...]
    background: str

    def caption(self) -> str:
        """The sentence that describes the scene completely."""
        return " and ".join(group.phrase() for group in self.groups) + f" on a {self.background} background"

    def render(self, size: int, seed: int = 0) -> Tensor:
        """The scene as a picture, float32 (3, size, size) in [-1, 1], with the jitter of ``seed``."""
        from hasten.pipelines.mini.render import render_scenes

        return render_scenes([self], seed, 0, size)[0]

    @property
    def held_out(self) -> bool:
        """Whether any of its groups is a held-out combination."""
        return any(group.held_out for group in self.groups)


@dataclass(frozen=True)
class Placed:
    """One object with jittered geometry, in shares of the side; rotation in radians."""

    shape: str
    rgb: tuple[float, float, float]
    x: float
    y: float
    radius: float
    rotation: float


def sample_scene(seed: int, index: int, split: Split = "train") -> Scene:
    """Scene number ``index`` of the stream ``seed``; rejection keeps the two splits disjoint."""
    rng = np.random.default_rng((seed, index, 0))
    while True:
        scene = _draw(rng)
        if scene.held_out == (split == "held_out"):
            return scene


def place(scene: Scene, seed: int, index: int) -> tuple[tuple[Placed, ...], tuple[float, float, float]]:
    """Objects of ``scene`` with the jitter of ``(seed, index)``, and the background colour, RGB in [0, 1]."""
    rng = np.random.default_rng((seed, index, 1))
    objects = []
    for group in scene.groups:
        low, high = SIZES[group.size]
        radius = rng.uniform(low, high)
        rgb = _tinted(COLOURS[group.colour], rng)
        x, y = PLACES[group.place]
        dx, dy = rng.uniform(-0.03, 0.03, 2)
        for offset in ROW_OFFSETS[group.count]:
            rotation = rng.uniform(-0.15, 0.15)
            objects.append(Placed(group.shape, rgb, x + offset + dx, y + dy, radius, rotation))
    return tuple(objects), _tinted(BACKGROUNDS[scene.background], rng)


def is_scene_caption(text: str) -> bool:
    """Whether :func:`parse_caption` understands ``text``."""
    return _CAPTION.fullmatch(text.strip()) is not None


def parse_caption(text: str) -> Scene:
    """The scene a caption describes.

    Raises:
        ConfigError: it is not a caption of the data set; the message explains the grammar.
    """
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"not a caption of the scenes data set: {text!r}. Expected, for example, "
            f"{_EXAMPLE!r}; shapes {', '.join(SHAPES)}; colours {', '.join(COLOURS)}; "
            f"backgrounds {', '.join(BACKGROUNDS)}"
        )
    groups = tuple(
        ObjectGroup(COUNTS[m["count"]], m["size"], m["colour"], _singular(m["shape"]), m["place"])
        for m in _GROUP.finditer(match["groups"])
    )
    return Scene(groups, match["background"])


def _draw(rng: np.random.Generator) -> Scene:
    background = _pick(rng, tuple(BACKGROUNDS))
    if rng.random() < 0.4:
        places = _PAIRS[int(rng.integers(len(_PAIRS)))]
        return Scene(tuple(_group(rng, 1, spot) for spot in places), background)
    count = int(rng.choice((1, 2, 3), p=(0.6, 0.2, 0.2)))
    return Scene((_group(rng, count, _pick(rng, tuple(PLACES) if count == 1 else _ROW_PLACES)),), background)


def _group(rng: np.random.Generator, count: int, spot: str) -> ObjectGroup:
    size = "small" if count > 1 else _pick(rng, tuple(SIZES))
    return ObjectGroup(count, size, _pick(rng, tuple(COLOURS)), _pick(rng, SHAPES), spot)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _tinted(rgb: tuple[int, int, int], rng: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = np.clip(np.asarray(rgb) / 255 + rng.uniform(-0.02, 0.02, 3), 0, 1)
    return float(red), float(green), float(blue)


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _singular(shape: str) -> str:
    return next(s for s in SHAPES if shape in (s, _plural(s)))


def _any(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_GROUP_TEXT = (
    rf"(?P<count>{_any(tuple(COUNTS))}) (?P<size>{_any(tuple(SIZES))}) (?P<colour>{_any(tuple(COLOURS))}) "
    rf"(?P<shape>{_any(SHAPES + tuple(map(_plural, SHAPES)))}) (?P<place>{_any(tuple(PLACES))})"
)
_GROUP = re.compile(_GROUP_TEXT)
_PLAIN_GROUP = re.sub(r"\?P<\w+>", "?:", _GROUP_TEXT)
_CAPTION = re.compile(
    rf"(?P<groups>{_PLAIN_GROUP}(?: and {_PLAIN_GROUP})?) on a (?P<background>{_any(tuple(BACKGROUNDS))}) background"
)
_EXAMPLE = "a large red circle on the left and a small blue star on the right on a white background"
