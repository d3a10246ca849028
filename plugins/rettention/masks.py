"""Geometry of masks: tile and window sizes from ``keep_ratio`` and the token grid.

Every mask is a box window on a three-axis view of the grid, shared by the queries of a box-shaped tile. The band of the
paper views the grid as (frames, 1, positions), so that a window is a run of positions seen in every frame; the
``tile2d`` and ``tile3d`` masks view it as (frames, rows, columns).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hasten.extend import ConfigError, TokenGrid

__all__ = ["Box", "MaskMode", "MaskShape", "mask_shape"]

MaskMode = Literal["reference", "block", "block_exact_budget", "tile2d", "tile3d"]
Box = tuple[int, int, int]
Tile = Literal["auto"] | int | tuple[int, int] | tuple[int, int, int]

_PICTURE_TILE = 128
_VIDEO_TILE = 256
"""Queries per tile with ``tile="auto"``: large enough to fill a matrix unit, small against the windows."""
_SIDE = 8


@dataclass(frozen=True)
class MaskShape:
    """Geometry of a mask.

    Args:
        axes: extents of the view of the grid.
        tile: queries that share a window, per axis.
        window: keys of a tile, per axis; shifted inward at the borders, so that it never shrinks.
        half: for the token-exact mask: a query keeps keys at most this many positions away.
    """

    axes: Box
    tile: Box
    window: Box
    half: int | None = None

    @property
    def covers_everything(self) -> bool:
        """Whether every query keeps every key."""
        return self.window == self.axes and (self.half is None or self.half >= self.axes[2] - 1)

    @property
    def kept(self) -> int:
        """Pairs of grid tokens that are kept, all queries together."""
        frames, rows, places = self.axes
        if self.half is None:
            return frames * rows * places * self.window[0] * self.window[1] * self.window[2]
        half = min(self.half, places - 1)
        return frames**2 * ((2 * half + 1) * places - half * (half + 1))

    def density(self, grid: TokenGrid) -> float:
        """Share of the whole score matrix that is kept; rows and columns of other tokens are kept entirely."""
        return _share(self.kept, grid)

    def computed(self, grid: TokenGrid) -> float:
        """Share of it that a tile kernel computes: more than is kept where the mask is token-exact."""
        return _share(grid.tokens * math.prod(self.window), grid)


def _share(pairs: int, grid: TokenGrid) -> float:
    """Share of the whole score matrix that pairs of grid tokens are, with all pairs of other tokens."""
    return (pairs + grid.total**2 - grid.tokens**2) / grid.total**2


def mask_shape(
    mode: MaskMode, keep_ratio: float, tile: Tile, grid: TokenGrid, *, fit: bool = False
) -> MaskShape:
    """Tile and window of a mask.

    Args:
        mode: see :class:`~hasten.plugins.rettention.config.RettentionConfig`.
        keep_ratio: nominal share of keys that a query keeps, in (0, 1].
        tile: queries per tile: positions for band masks, sides for tile masks.
        grid: the tokens.
        fit: make tiles shorter in time than asked, where a segment of a few frames has windows that are.

    Raises:
        ConfigError: the window would be empty or smaller than a tile, or the tile has the wrong number of sides.
    """
    if mode in ("tile2d", "tile3d"):
        return _tiles(mode, keep_ratio, tile, grid, fit)
    return _band(mode, keep_ratio, tile, grid)


def _band(mode: MaskMode, keep_ratio: float, tile: Tile, grid: TokenGrid) -> MaskShape:
    frames, places = grid.frames, grid.positions
    if not (tile == "auto" or isinstance(tile, int)):
        raise ConfigError(f"tile={list(tile)}: mask={mode!r} is a band, its tile is one number of positions")
    budget = round(keep_ratio * places) if mode == "block_exact_budget" else int(keep_ratio * places)
    if budget < 1:
        raise ConfigError(
            f"keep_ratio={keep_ratio} keeps none of {places} positions of a {grid.height} x {grid.width} grid, so "
            f"rows of the mask would be empty; the minimum is {1 / places:.3g}"
        )
    exact = mode == "block_exact_budget"
    half = budget // 2
    queries = _band_tile(tile, half, frames, places)
    if keep_ratio >= 1.0:
        return MaskShape((frames, 1, places), (frames, 1, queries), (frames, 1, places))
    if exact and budget < queries:
        raise ConfigError(
            f"a window of {budget} positions (keep_ratio={keep_ratio} of {places}) is smaller than a tile of "
            f"{queries}: choose tile={budget} or less, a larger keep_ratio, or mask='block'"
        )
    window = budget if exact else min(places, queries + 2 * half)
    reach = half if mode == "reference" else None
    return MaskShape((frames, 1, places), (frames, 1, queries), (frames, 1, window), reach)


def _band_tile(tile: Tile, halo: int, frames: int, places: int) -> int:
    if isinstance(tile, int):
        return min(tile, places)
    # A tile as wide as the halo computes at most 1.5 times what the nominal window has.
    limit = _PICTURE_TILE if frames == 1 else max(1, _VIDEO_TILE // frames)
    chosen = min(limit, max(1, halo))
    return _power_of_two(chosen) if frames == 1 else chosen


def _tiles(mode: MaskMode, keep_ratio: float, tile: Tile, grid: TokenGrid, fit: bool) -> MaskShape:
    axes = (grid.frames, grid.height, grid.width)
    free = (1, 2) if mode == "tile2d" else (0, 1, 2)
    sides = _tile_sides(mode, keep_ratio, tile, axes, free)
    whole = (sides[0] if 0 in free else axes[0], sides[1], sides[2])
    share = keep_ratio ** (1 / len(free))
    wanted = [axes[axis] * share if axis in free else axes[axis] for axis in range(3)]
    if mode == "tile2d":  # square windows, whatever the aspect ratio of the picture
        wanted[1] = wanted[2] = (keep_ratio * axes[1] * axes[2]) ** 0.5
    window = _fit(wanted, axes, free)
    if fit:
        whole = (min(whole[0], window[0]), whole[1], whole[2])
    if any(window[axis] < whole[axis] for axis in free):
        raise ConfigError(
            f"a window of {_cross(window)} (keep_ratio={keep_ratio} of {_cross(axes)}) is smaller than a tile of "
            f"{_cross(whole)}: choose a smaller tile, or a larger keep_ratio"
        )
    return MaskShape(axes, whole, window)


def _fit(wanted: list[float], axes: Box, free: tuple[int, ...]) -> Box:
    """Integer sides near ``wanted`` whose product is near theirs; what one axis is too short for, the next one gets."""
    volume = 1.0
    for axis in free:
        volume *= wanted[axis]
    window = list(axes)
    order = sorted(free, key=lambda axis: axes[axis] / wanted[axis])
    for place, axis in enumerate(order):
        rest = len(order) - place
        scale = volume
        for other in order[place:]:
            scale /= wanted[other]
        window[axis] = max(1, min(axes[axis], round(wanted[axis] * scale ** (1 / rest))))
        volume /= window[axis]
    return window[0], window[1], window[2]


def _tile_sides(mode: MaskMode, keep_ratio: float, tile: Tile, axes: Box, free: tuple[int, ...]) -> Box:
    if isinstance(tile, int):
        return tuple(min(tile, side) for side in axes)  # type: ignore[return-value]
    if tile == "auto":
        share = keep_ratio ** (1 / len(free))
        # Half a window a side leaves a halo of a quarter on each side.
        chosen = [min(_SIDE, _power_of_two(max(1, int(share * side) // 2))) for side in axes]
        if mode == "tile3d":
            chosen[0] = min(chosen[0], 4)
        return min(chosen[0], axes[0]), min(chosen[1], axes[1]), min(chosen[2], axes[2])
    if len(tile) != len(free):
        raise ConfigError(
            f"tile={list(tile)}: mask={mode!r} needs {len(free)} sides, or one number for all of them"
        )
    sides = (axes[0], *tile) if len(tile) == 2 else tile
    return min(sides[0], axes[0]), min(sides[1], axes[1]), min(sides[2], axes[2])


def _power_of_two(number: int) -> int:
    """The largest one that is at most ``number``."""
    return 1 << (number.bit_length() - 1)


def _cross(sides: Box) -> str:
    return " x ".join(map(str, sides))
