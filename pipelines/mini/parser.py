"""Reads a scene from pixels without training: colours by distance, shapes by overlap with templates.

A judge trained on the same data as the generator may be biased in its favour. This parser is not: it uses only the
colours and outlines of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.pipelines.mini.render import signed_distance
from hasten.pipelines.mini.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES

__all__ = ["Found", "Observation", "observe"]

Pixels = NDArray[np.float64]

CONTRAST = 0.15
"""Smallest RGB distance (unit cube) of an object from the background."""
COLOUR_TOLERANCE = 0.25
"""Largest RGB distance from a named colour."""
OVERLAP = 0.75
"""Smallest intersection over union with the template of a shape; clean renders reach 0.9."""
LEAST_AREA = 0.003
"""Smallest share of the picture of an object; smaller spots are ignored. The smallest object covers 0.012."""
SIZE_LIMIT = (SIZES["small"][1] + SIZES["large"][0]) / 2
_TURNS = (-0.12, 0.0, 0.12)


@dataclass(frozen=True)
class Found:
    """One object; unknown shapes and colours are ``None``. Lengths are shares of the side of the picture."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class Observation:
    """The objects and the background of one picture."""

    background: str | None
    objects: tuple[Found, ...]


def observe(pixels: Pixels) -> Observation:
    """Parse one square picture.

    Args:
        pixels: (H, H, 3), RGB in [0, 1].
    """
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    background = np.median(border, axis=0)
    found = []
    for spot in _spots(np.linalg.norm(pixels - background, axis=-1) > CONTRAST):
        colour = _inner_colour(pixels, spot, background)
        cover = _cover(pixels, background, colour)
        found += [_describe(part * cover, colour) for part in _spots(_grown(spot) & (cover > 0.5))]
    return Observation(_nearest(background, BACKGROUNDS), tuple(found))


def _spots(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Connected parts of a mask that are large enough for an object."""
    from scipy.ndimage import label  # type: ignore[import-untyped]

    labels, count = label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == i for i in range(1, count + 1) if sizes[i] >= LEAST_AREA * mask.size]


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_dilation

    grown: NDArray[np.bool_] = binary_dilation(mask, iterations=1)
    return grown


def _inner_colour(pixels: Pixels, spot: NDArray[np.bool_], background: Pixels) -> Pixels:
    """Median colour of the half of a spot that differs most from the background, since its edge is blended."""
    inside = pixels[spot]
    contrast = np.linalg.norm(inside - background, axis=-1)
    colour: Pixels = np.median(inside[contrast >= np.median(contrast)], axis=0)
    return colour


def _cover(pixels: Pixels, background: Pixels, colour: Pixels) -> Pixels:
    """Share of ``colour`` in every pixel, as a blend with the background; (H, H) in [0, 1]."""
    axis = colour - background
    cover: Pixels = np.clip((pixels - background) @ axis / (axis @ axis), 0, 1)
    return cover


def _describe(cover: Pixels, colour: Pixels) -> Found:
    side = len(cover)
    axis = (np.arange(side) + 0.5) / side
    area = cover.sum() / side**2
    x, y = (cover.sum(0) @ axis) / cover.sum(), (cover.sum(1) @ axis) / cover.sum()
    best = max(
        (_overlap(cover, shape, turn, area, x, y) for shape in SHAPES for turn in _TURNS),
        key=lambda fit: fit[0],
    )
    overlap, shape, radius = best
    return Found(
        shape=shape if overlap >= OVERLAP else None,
        colour=_nearest(colour, COLOURS),
        size="small" if radius < SIZE_LIMIT else "large",
        x=float(x),
        y=float(y),
        overlap=overlap,
    )


def _overlap(
    cover: Pixels, shape: str, turn: float, area: float, x: float, y: float
) -> tuple[float, str, float]:
    """Soft intersection over union with the template of equal area and centroid; also its shape and radius."""
    unit_area, unit_y = _moments(shape)
    radius = math.sqrt(area / unit_area)
    x, y = x + radius * unit_y * math.sin(turn), y - radius * unit_y * math.cos(turn)
    side = len(cover)
    axis = (np.arange(side) + 0.5) / side
    dx, dy = (axis[None, :] - x) / radius, (axis[:, None] - y) / radius
    u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    distance = signed_distance(shape, torch.from_numpy(u), torch.from_numpy(v)).numpy()
    template = np.clip(0.5 - distance * radius * side, 0, 1)
    return float(np.minimum(cover, template).sum() / np.maximum(cover, template).sum()), shape, radius


@cache
def _moments(shape: str) -> tuple[float, float]:
    """Area and height of the centroid of a shape of unit radius."""
    axis = torch.linspace(-1.3, 1.3, 521, dtype=torch.float64)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = signed_distance(shape, u, v) < 0
    return float(inside.sum()) * (2.6 / 520) ** 2, float(v[inside].mean())


def _nearest(colour: Pixels, palette: Mapping[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.asarray(rgb) / 255)) for name, rgb in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= COLOUR_TOLERANCE else None
