"""A mask laid out for kernels: queries ordered by tile, and the keys of every tile."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        frames: frames of the grid that the queries are of; ``None`` is all of them.
    """

    def __init__(
        self,
        shape: MaskShape,
        grid: TokenGrid,
        device: torch.device | str = "cpu",
        frames: range | None = None,
    ) -> None:
        self.shape, self.grid, self.device = shape, grid, torch.device(device)
        self.frames = range(grid.frames) if frames is None else frames
        divided = len(self.frames) != grid.frames
        self.queries = replace(grid, frames=len(self.frames))
        """The tokens of the queries."""
        self.whole = SparseLayout(shape, grid, device) if divided else self
        """The same mask with the queries of all frames, whose order is that of the keys."""
        placed = _groups(shape)
        if divided:
            placed = [part for group in placed for part in _of_frames(group, self.frames, grid.positions)]
        order = torch.cat([queries.flatten() for queries, _, _ in placed])
        identity = torch.arange(self.queries.tokens)
        ordered = bool(torch.equal(order, identity))
        self.order: Tensor | None = None if ordered else order.to(device)
        """(query tokens,) token at each place of tile order; ``None`` if they agree."""
        self.places: Tensor | None = None if ordered else torch.argsort(order).to(device)
        """(query tokens,) place of each token in tile order; ``None`` if they agree."""
        place_of = torch.argsort(order if self.whole is self else self.whole.tokens.cpu())
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
        self.context_tokens = _context(grid).to(device)
        """(context,) numbers, in the sequence of the keys, of the tokens that are not of the grid."""
        self.context_rows = _context(self.queries).to(device)
        """(context,) their numbers in the sequence of the queries."""
        self._near: dict[int, Tensor] = {}

    @classmethod
    def of(
        cls,
        config: RettentionConfig,
        grid: TokenGrid,
        device: torch.device | str = "cpu",
        frames: range | None = None,
    ) -> SparseLayout:
        """The mask that the options ask for, with ``frames`` for a segment of a divided layer.

        Raises:
            ConfigError: it would have empty rows, or windows smaller than a tile.
        """
        return cls(
            mask_shape(config.mask, config.keep_ratio, config.tile, grid, fit=frames is not None),
            grid,
            device,
            frames,
        )

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
        """(query tokens,) token of the queries at each place of tile order."""
        return torch.arange(self.queries.tokens, device=self.device) if self.order is None else self.order

    @property
    def density(self) -> float:
        """Share of the score matrix that the mask keeps."""
        kept = self.shape.kept * self.queries.frames // self.grid.frames
        pairs = self.queries.total * self.grid.total
        return (pairs - self.queries.tokens * self.grid.tokens + kept) / pairs

    @property
    def span(self) -> slice:
        """Where the grid's tokens are in the sequence of the queries; those of the keys: ``whole.span``."""
        return slice(self.grid.before, self.grid.before + self.queries.tokens)

    def context(self, x: Tensor) -> Tensor:
        """The tokens (B, H, context, d) of queries or keys ``x`` (B, H, N, d) that are not of the grid."""
        head, tail = x[:, :, : self.grid.before], x[:, :, x.shape[2] - self.grid.after :]
        if not self.grid.before or not self.grid.after:
            return tail if self.grid.after else head
        return torch.cat([head, tail], dim=2)

    def to_tiles(self, x: Tensor) -> Tensor:
        """Grid tokens of the queries (..., G, d) in tile order; of the keys: ``whole.to_tiles``."""
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


def _of_frames(group: Placed, frames: range, positions: int) -> list[Placed]:
    """The tiles of a group without the queries of other frames, numbered from the first of ``frames``."""
    queries, keys, corners = group
    inside = (queries // positions >= frames.start) & (queries // positions < frames.stop)
    counts = inside.sum(1)
    parts = []
    for count in sorted(set(counts.tolist()) - {0}, reverse=True):
        tiles = counts == count
        chosen = queries[tiles][inside[tiles]].view(-1, count) - frames.start * positions
        parts.append((chosen, keys[tiles], corners[tiles]))
    return parts


def _context(grid: TokenGrid) -> Tensor:
    end = grid.before + grid.tokens
    return torch.cat([torch.arange(grid.before), torch.arange(end, grid.total)])


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
