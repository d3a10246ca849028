"""Masks: the paper's, those of the tiles, and their densities, against masks made pair by pair."""

from __future__ import annotations

import pytest
import torch
from slow import band_mask, box_mask

from hasten._adapters.tokens import TokenGrid
from hasten._errors import ConfigError
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.masks import MaskShape, mask_shape

GRIDS = [
    TokenGrid(1, 6, 10),
    TokenGrid(1, 6, 10, before=5),
    TokenGrid(1, 6, 10, after=7),
    TokenGrid(3, 4, 7),
    TokenGrid(3, 4, 7, before=4),
    TokenGrid(5, 1, 11, before=2, after=3),
]


def laid_out(layout: SparseLayout) -> torch.Tensor:
    """The (N, N) mask that the tables of a layout describe."""
    grid = layout.grid
    order = layout.tokens
    mask = torch.zeros(grid.tokens, grid.tokens, dtype=torch.bool)
    for group in layout.groups:
        queries = order[group.queries].view(group.tiles, group.size)
        for tile in range(group.tiles):
            keep = (
                torch.ones(group.size, layout.window, dtype=torch.bool)
                if (near := layout.exact(group)) is None
                else near[tile]
            )
            for row, query in enumerate(queries[tile]):
                mask[query, group.keys[tile][keep[row]]] = True
    whole = torch.ones(grid.total, grid.total, dtype=torch.bool)
    whole[layout.span, layout.span] = mask
    return whole


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("keep_ratio", [0.12, 0.3, 0.6])
@pytest.mark.parametrize("tile", ["auto", 1, 4])
def test_reference_mode_is_the_papers_mask(grid, keep_ratio, tile):
    layout = SparseLayout(mask_shape("reference", keep_ratio, tile, grid), grid)
    expected = band_mask(grid, keep_ratio)
    assert torch.equal(laid_out(layout), expected)
    assert layout.density == pytest.approx(expected.double().mean().item(), abs=1e-12)
    # A tile kernel computes what any of a tile's queries sees.
    windows = sum(group.tiles * group.size * group.keys.shape[1] for group in layout.groups)
    others = grid.total**2 - grid.tokens**2
    assert layout.shape.computed(grid) == pytest.approx((windows + others) / grid.total**2, abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("mode", ["block", "block_exact_budget", "tile2d", "tile3d"])
@pytest.mark.parametrize("tile", ["auto", 2])
def test_tiles_share_a_window_of_constant_size(grid, mode, tile):
    shape = mask_shape(mode, 0.5, tile, grid)
    layout = SparseLayout(shape, grid)
    mask = laid_out(layout)
    assert torch.equal(mask, box_mask(grid, shape.axes, shape.tile, shape.window))
    assert layout.density == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert shape.computed(grid) == pytest.approx(layout.density)
    if mode == "block":
        assert bool((mask | ~band_mask(grid, 0.5)).all()), "keeps at least what the paper keeps"


@pytest.mark.parametrize("mode", ["block", "block_exact_budget", "tile2d", "tile3d", "reference"])
def test_keeping_everything_covers_everything(mode):
    for grid in GRIDS:
        shape = mask_shape(mode, 1.0, "auto", grid)
        assert shape.covers_everything
        assert shape.density(grid) == 1.0


@pytest.mark.parametrize(
    ("keep_ratio", "percent"), [(0.25, 23.46), (0.125, 12.13), (0.0625, 6.176), (0.03125, 3.125)]
)
def test_densities_of_the_papers_pictures(keep_ratio, percent):
    grid = TokenGrid(1, 64, 64)
    assert 100 * mask_shape("reference", keep_ratio, "auto", grid).density(grid) == pytest.approx(
        percent, abs=0.005
    )


@pytest.mark.parametrize(
    ("keep_ratio", "half", "whole", "video"),
    [(0.125, 84, 14.35, 12.13), (0.0625, 42, 8.57, 6.20), (0.03125, 21, 5.61, 3.16)],
)
def test_densities_of_the_papers_videos(keep_ratio, half, whole, video):
    grid = TokenGrid(13, 30, 45, before=226)
    shape = mask_shape("reference", keep_ratio, "auto", grid)
    assert shape.half == half
    assert 100 * shape.density(grid) == pytest.approx(whole, abs=0.005)
    assert 100 * shape.kept / grid.tokens**2 == pytest.approx(video, abs=0.005)


@pytest.mark.parametrize("keep_ratio", [0.125, 0.0625, 0.03125])
@pytest.mark.parametrize("side", [32, 64])
def test_automatic_tiles_keep_the_true_density_near_the_nominal_one(keep_ratio, side):
    for grid in (TokenGrid(1, side, side), TokenGrid(13, 30, 45)):
        for mode in ("block", "block_exact_budget", "tile2d"):
            assert mask_shape(mode, keep_ratio, "auto", grid).density(grid) <= 1.5 * keep_ratio


def test_windows_of_a_video_are_contiguous_when_ordered_by_position():
    grid = TokenGrid(3, 4, 7, before=4)
    layout = SparseLayout(mask_shape("block", 0.3, 4, grid), grid)
    assert all(group.starts is not None for group in layout.groups)
    x = torch.randn(2, grid.tokens, 3)
    assert torch.equal(layout.from_tiles(layout.to_tiles(x)), x)
    assert SparseLayout(mask_shape("block", 0.3, 4, TokenGrid(1, 4, 7)), TokenGrid(1, 4, 7)).order is None


def test_an_empty_row_is_refused():
    with pytest.raises(
        ConfigError, match=r"keeps none of 60 positions of a 6 x 10 grid.*the minimum is 0.0167"
    ):
        mask_shape("block", 0.01, "auto", TokenGrid(1, 6, 10))


def test_a_window_smaller_than_a_tile_is_refused():
    with pytest.raises(ConfigError, match=r"a window of 6 positions .* is smaller than a tile of 8"):
        mask_shape("block_exact_budget", 0.1, 8, TokenGrid(1, 6, 10))
    with pytest.raises(ConfigError, match=r"a window of 1 x 4 x 4 .* is smaller than a tile of 1 x 8 x 8"):
        mask_shape("tile2d", 1 / 16, [8, 8], TokenGrid(1, 16, 16))  # type: ignore[arg-type]


def test_a_tile_with_the_wrong_number_of_sides_is_refused():
    with pytest.raises(ConfigError, match="is one number of positions"):
        mask_shape("block", 0.5, (4, 4), TokenGrid(1, 8, 8))
    with pytest.raises(ConfigError, match="needs 3 sides"):
        mask_shape("tile3d", 0.5, (4, 4), TokenGrid(2, 8, 8))


def test_an_even_run_of_windows_is_one_call():
    layout = SparseLayout(MaskShape((1, 1, 64), (1, 1, 8), (1, 1, 24)), TokenGrid(1, 8, 8))
    assert layout.groups[0].runs() == [(0, 2, 0, 0), (2, 5, 8, 8), (7, 1, 40, 0)]
