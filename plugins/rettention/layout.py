"""A mask laid out for kernels: queries ordered by tile, and the keys of every tile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch

from hasten.extend import TokenGrid
from hasten.plugins.rettention.masks import Box, MaskShape, mask_shape

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.plugins.rettention.config import RettentionConfig

    Placed = tuple[Tensor, Tensor, Tensor]

__all__ = ["SparseLayout", "TileGroup"]


@dataclass(frozen=True, eq=False)
class TileGroup:
    """Tiles with equally many queries; they follow each other in tile order.

    Args:
        first: place of their first query in tile order.
        tiles: how many.
        size: queries per tile.
        keys: (tiles, window) kept grid tokens of each tile.
        starts: where the windows begin in tile order, if they are contiguous there.
    """

    first: int
    tiles: int
    size: int
    keys: Tensor
    starts: tuple[int, ...] | None

    @property
    def queries(self) -> slice:
        """Its places in tile order."""
        return slice(self.first, self.first + self.tiles * self.size)

    def runs(self) -> list[tuple[int, int, int, int]]:
        """Stretches of tiles whose windows advance evenly: (first tile, tiles, first window start, step)."""
        found: list[tuple[int, int, int, int]] = []
        starts = self.starts or ()
        for tile, start in enumerate(starts):
            if found:
                first, count, begin, step = found[-1]
                gap = start - (begin + (count - 1) * step)
                if count == 1 or gap == step:
                    found[-1] = (first, count + 1, begin, gap)
                    continue
            found.append((tile, 1, start, 0))
        return found


class SparseLayout:
    """One mask on one token grid, on one device.

    Args:
        shape: geometry of the mask.
        grid: the tokens.
        device: where the index tensors live.
    """

    def __init__(self, shape: MaskShape, grid: TokenGrid, device: torch.device | str = "cpu") -> None:
        self.shape, self.grid, self.device = shape, grid, torch.device(device)
        placed = _groups(shape)
        order = torch.cat([queries.flatten() for queries, _, _ in placed])
        identity = torch.arange(grid.tokens)
        ordered = bool(torch.equal(order, identity))
        self.order: Tensor | None = None if ordered else order.to(device)
        """(grid tokens,) token at each place of tile order; ``None`` if they agree."""
        self.places: Tensor | None = None if ordered else torch.argsort(order).to(device)
        """(grid tokens,) place of each token in tile order; ``None`` if they agree."""
        place_of = torch.argsort(order)
        first = 0
        groups = []
        for queries, keys, _ in placed:
            tiles, size = queries.shape
            groups.append(TileGroup(first, tiles, size, keys.to(device), _starts(place_of, keys)))
            first += tiles * size
        self.groups = tuple(groups)
        self.window = groups[0].keys.shape[1]
        """Grid keys per tile."""
        self.corners = torch.cat([corners for _, _, corners in placed])
        """(tiles, 3) first window corner of every tile, on the CPU."""
        end = grid.before + grid.tokens
        others = torch.cat([torch.arange(grid.before), torch.arange(end, grid.total)])
        self.context_tokens = others.to(device)
        """(context,) numbers, in the sequence, of the tokens that are not of the grid."""
        self._near: dict[int, Tensor] = {}

    @classmethod
    def of(
        cls, config: RettentionConfig, grid: TokenGrid, device: torch.device | str = "cpu"
    ) -> SparseLayout:
        """The mask that the options ask for.

        Raises:
            ConfigError: it would have empty rows, or windows smaller than a tile.
        """
        return cls(mask_shape(config.mask, config.keep_ratio, config.tile, grid), grid, device)

    def exact(self, group: TileGroup) -> Tensor | None:
        """(tiles, size, window) what a query keeps of its tile's window; ``None`` is everything.

        As large as the scores of one head, so it is made where a kernel needs it, and not for a plan.
        """
        if self.shape.half is None:
            return None
        if group.first not in self._near:
            queries = self.tokens[group.queries].view(group.tiles, group.size)
            self._near[group.first] = _near(self.shape, queries, group.keys)
        return self._near[group.first]

    @property
    def tokens(self) -> Tensor:
        """(grid tokens,) token at each place of tile order."""
        return torch.arange(self.grid.tokens, device=self.device) if self.order is None else self.order

    @property
    def density(self) -> float:
        """Share of the score matrix that the mask keeps."""
        return self.shape.density(self.grid)

    @property
    def span(self) -> slice:
        """Where the grid is in the sequence."""
        return slice(self.grid.before, self.grid.before + self.grid.tokens)

    def context(self, x: Tensor) -> Tensor:
        """The tokens (B, H, context, d) of ``x`` (B, H, N, d) that are not of the grid."""
        head, tail = x[:, :, : self.grid.before], x[:, :, self.grid.before + self.grid.tokens :]
        if not self.grid.before or not self.grid.after:
            return tail if self.grid.after else head
        return torch.cat([head, tail], dim=2)

    def to_tiles(self, x: Tensor) -> Tensor:
        """Grid tokens (..., G, d) in tile order."""
        return x if self.order is None else x.index_select(-2, self.order)

    def from_tiles(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`to_tiles`."""
        return x if self.places is None else x.index_select(-2, self.places)


def _groups(shape: MaskShape) -> list[Placed]:
    """Per group of equally large tiles: tokens (tiles, size), keys (tiles, window), window corners (tiles, 3)."""
    kinds = [_cuts(side, tile) for side, tile in zip(shape.axes, shape.tile)]
    groups = []
    for rows, columns, frames in product(kinds[1], kinds[2], kinds[0]):
        size: Box = (frames[1], rows[1], columns[1])
        corners = torch.cartesian_prod(*(torch.tensor(k[0]) for k in (rows, columns, frames))).view(-1, 3)[
            :, [2, 0, 1]
        ]
        limits = [torch.tensor(side - window) for side, window in zip(shape.axes, shape.window)]
        low = torch.stack(
            [
                (corners[:, axis] - (shape.window[axis] - size[axis]) // 2).clamp(min=0).minimum(limits[axis])
                for axis in range(3)
            ],
            dim=1,
        )
        groups.append((_tokens(shape, corners, size), _tokens(shape, low, shape.window), low))
    return groups


def _cuts(side: int, tile: int) -> list[tuple[list[int], int]]:
    """Starts of the whole tiles of an axis with their length, then those of the rest."""
    whole = side // tile * tile
    cuts = [(list(range(0, whole, tile)), tile)] if whole else []
    return cuts if whole == side else [*cuts, ([whole], side - whole)]


def _tokens(shape: MaskShape, corners: Tensor, box: Box) -> Tensor:
    """(tiles, tokens) of the boxes at ``corners``; frames run fastest: a position's frames are neighbours."""
    _, rows, columns = shape.axes
    inside = torch.cartesian_prod(*(torch.arange(side) for side in (box[1], box[2], box[0]))).view(-1, 3)
    strides = torch.tensor([rows * columns, columns, 1])
    return (corners * strides).sum(1, keepdim=True) + (inside[:, [2, 0, 1]] * strides).sum(1)


def _starts(place_of: Tensor, keys: Tensor) -> tuple[int, ...] | None:
    """Beginnings of the windows in tile order, ``None`` unless every one is contiguous there."""
    places = place_of[keys]
    if not bool((places.diff(dim=1) == 1).all()):
        return None
    return tuple(places[:, 0].tolist())


def _near(shape: MaskShape, queries: Tensor, keys: Tensor) -> Tensor:
    """(tiles, size, window): which keys are at most ``half`` positions away."""
    position = [tokens % shape.axes[2] for tokens in (queries, keys)]
    return (position[0][:, :, None] - position[1][:, None, :]).abs() <= (shape.half or 0)
