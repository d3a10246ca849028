"""Scale schedules of next-scale generation: token grids from coarse to fine, and which of a few layers a scale uses.

Published schedules: VAR (Tian et al. 2024, arXiv 2404.02905) and Infinity (Han et al. 2024, arXiv 2412.04431).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

__all__ = [
    "INFINITY_PREFIX",
    "INFINITY_RATIOS",
    "VAR_SCHEDULES",
    "Grid",
    "Schedule",
    "check_schedule",
    "infinity_schedule",
    "nearest_ratio",
    "shared_layer_index",
    "square_schedule",
    "token_ends",
]

Grid = tuple[int, int]
"""Rows and columns of one scale's tokens."""
Schedule = tuple[Grid, ...]
"""Grids from coarse to fine."""

_VAR_SIDES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}

_INFINITY = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}
"""Height over width -> grids, rows first. The other ratios are these, transposed."""
_TRANSPOSED = {0.8: 1.25, 0.75: 1.333, 0.666: 1.5, 0.571: 1.75, 0.5: 2.0, 0.4: 2.5, 0.333: 3.0}

INFINITY_PREFIX = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Resolution name -> number of scales, always a prefix of the 1M schedule."""


def square_schedule(sides: Sequence[int]) -> Schedule:
    """The schedule of square grids with these sides."""
    return tuple((side, side) for side in sides)


VAR_SCHEDULES: dict[int, Schedule] = {pixels: square_schedule(sides) for pixels, sides in _VAR_SIDES.items()}
"""Image side in pixels -> schedule of the VAR models."""


def _parse(text: str) -> Schedule:
    pairs = (item.split("x") for item in text.split())
    return tuple((int(rows), int(columns)) for rows, columns in pairs)


INFINITY_RATIOS: dict[float, Schedule] = {ratio: _parse(text) for ratio, text in _INFINITY.items()} | {
    ratio: tuple((columns, rows) for rows, columns in _parse(_INFINITY[other]))
    for ratio, other in _TRANSPOSED.items()
}
"""Height over width -> schedule of 13 scales of the Infinity models at about one megapixel."""


def nearest_ratio(height: float, width: float) -> float:
    """The key of :data:`INFINITY_RATIOS` nearest to ``height / width``, by the ratio of the two."""
    wanted = height / width
    return min(INFINITY_RATIOS, key=lambda ratio: max(ratio / wanted, wanted / ratio))


def infinity_schedule(ratio: float, resolution: str = "1M") -> Schedule:
    """Schedule of an Infinity model.

    Args:
        ratio: a key of :data:`INFINITY_RATIOS`, height over width.
        resolution: a key of :data:`INFINITY_PREFIX`.
    """
    return INFINITY_RATIOS[ratio][: INFINITY_PREFIX[resolution]]


def token_ends(schedule: Schedule) -> tuple[int, ...]:
    """``T_k``: number of tokens up to and including each scale.

    >>> token_ends(square_schedule((1, 2, 4)))
    (1, 5, 21)
    """
    return tuple(accumulate(rows * columns for rows, columns in schedule))


def shared_layer_index(scale: int, scales: int, layers: int) -> int:
    """Which of ``layers`` shared layers scale number ``scale`` of ``scales`` uses.

    The nearest tick of ``linspace(1/3n, 1 - 1/3n, n)`` to ``scale / (scales - 1)``, in float64 with numpy's rounding:
    exact ties of real arithmetic (scales 2 and 7 of 10) are decided by it, and the published weights depend on them.
    """
    ticks = np.linspace(1 / 3 / layers, 1 - 1 / 3 / layers, layers)
    return int(np.argmin(np.abs(ticks - scale / max(1, scales - 1))))


def check_schedule(schedule: Sequence[Sequence[int]]) -> Schedule:
    """The schedule as tuples.

    Raises:
        ValueError: it has fewer than two scales, does not begin with one token, or a side shrinks.
    """
    grids = tuple((int(rows), int(columns)) for rows, columns in schedule)
    if len(grids) < 2 or grids[0] != (1, 1):
        raise ValueError(f"a scale schedule begins with 1x1 and has at least two scales, got {grids}")
    for before, after in pairwise(grids):
        if after[0] < before[0] or after[1] < before[1]:
            raise ValueError(f"scale {after[0]}x{after[1]} is smaller than {before[0]}x{before[1]} before it")
    return grids
