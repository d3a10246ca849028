"""Re-ttention by definition, with matrices of all pairs in double precision. Shares no code with the product."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from hasten._adapters.tokens import TokenGrid


def band_mask(grid: TokenGrid, keep_ratio: float) -> Tensor:
    """(N, N) boolean: the paper's mask, pair by pair."""
    half = int(grid.positions * keep_ratio) // 2
    mask = torch.zeros(grid.total, grid.total, dtype=torch.bool)
    for i, j in itertools.product(range(grid.total), repeat=2):
        a, b = i - grid.before, j - grid.before
        inside = all(0 <= x < grid.tokens for x in (a, b))
        mask[i, j] = not inside or abs(a % grid.positions - b % grid.positions) <= half
    return mask


def box_mask(grid: TokenGrid, axes: Any, tile: Any, window: Any) -> Tensor:
    """(N, N) boolean: tiles of a three-axis grid, each with a centred window that is pushed inside the grid."""
    mask = torch.zeros(grid.total, grid.total, dtype=torch.bool)

    def place(token: int) -> tuple[int, int, int]:
        return token // (axes[1] * axes[2]), token // axes[2] % axes[1], token % axes[2]

    for i, j in itertools.product(range(grid.total), repeat=2):
        a, b = i - grid.before, j - grid.before
        if not all(0 <= x < grid.tokens for x in (a, b)):
            mask[i, j] = True
            continue
        inside = True
        for query, key, side, length, width in zip(place(a), place(b), axes, tile, window):
            start = query // length * length
            real = min(length, side - start)
            low = min(max(start - (width - real) // 2, 0), side - width)
            inside = inside and low <= key < low + width
        mask[i, j] = inside
    return mask


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Any:
    """Output and log-sum-exp in double precision. ``mask`` is broadcast over (B, H, N, N)."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)


def qkv(
    grid: TokenGrid, heads: int = 2, dim: int = 16, batch: int = 1, seed: int = 0, scale: float = 1.0
) -> list[Tensor]:
    """Random queries, keys and values, in the strides of diffusers' processors."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, grid.total, heads, dim)
    return [torch.randn(shape, generator=generator).mul(scale).transpose(1, 2) for _ in range(3)]
