"""Tiles folded into the heads of torch's fused attention: the kernel for CPUs, and a correct one everywhere.

Windows have constant width, so all tiles of a head are one batched call. Where the windows are contiguous they are
overlapping strided views of the keys and nothing is copied, if no other tokens (text) are among the keys; otherwise the
keys of a few heads at a time are gathered into a buffer that stays in the cache.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from hasten.plugins.rettention.kernels._base import Epilogue, SparseKernel
from hasten.plugins.rettention.kernels.fused import attend
from hasten.plugins.rettention.layout import SparseLayout, TileGroup
from hasten.plugins.rettention.math import reshape
from hasten.plugins.rettention.operands import Operands

__all__ = ["GatherKernel"]

_BUFFER = {"cpu": 8 << 20, "cuda": 512 << 20}
"""Bytes of gathered keys and values at a time, where a single head does not need more."""


class GatherKernel(SparseKernel):
    """Gather, then fused attention."""

    name: ClassVar[str] = "gather"

    @override
    def refusal(self, device: torch.device, dtype: torch.dtype, dim: int, layout: SparseLayout) -> str | None:
        """Serves everything that torch's attention serves."""
        return None

    @override
    def attend(
        self,
        parts: Operands,
        out: Tensor,
        epilogue: Epilogue | None = None,
        *,
        need_lse: bool = False,
    ) -> Tensor | None:
        """One sample at a time: samples may see different other tokens."""
        q, tokens = parts.query, parts.layout.queries.tokens
        lse = q.new_empty(*q.shape[:2], tokens, dtype=_statistic(q)) if need_lse else None
        for sample in range(len(q)):
            work = _Sample(
                parts.layout, parts.scale, *(x[sample] for x in (parts.query, parts.key, parts.value))
            )
            seen = None if parts.visible is None else parts.visible[sample]
            work.run(out[sample], None if lse is None else lse[sample], seen, _of(epilogue, sample))
        return lse


class _Sample:
    """Attention of one sample; tensors are (H, tokens, d)."""

    def __init__(self, layout: SparseLayout, scale: float, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.layout, self.scale = layout, scale
        self.q = layout.to_tiles(q[:, layout.span])
        self.k, self.v = k, v

    @cached_property
    def tiled(self) -> list[Tensor]:
        """Keys and values of the grid, in tile order."""
        whole = self.layout.whole
        return [whole.to_tiles(x[:, whole.span]) for x in (self.k, self.v)]

    def run(self, out: Tensor, lse: Tensor | None, seen: Tensor | None, epilogue: Epilogue | None) -> None:
        layout = self.layout
        tokens = layout.context_tokens
        others = tokens if seen is None else tokens[seen]
        windows = layout.shape.half is None and all(group.starts is not None for group in layout.groups)
        strided = windows and len(others) == 0
        permuted = layout.order is not None
        place = torch.empty_like(self.q) if permuted else out
        sums = None if lse is None else (torch.empty_like(lse) if permuted else lse)
        direct = None if permuted else epilogue
        for group in layout.groups:
            if strided:
                self._strided(group, place, sums, direct)
            else:
                self._gathered(group, others, place, sums, direct)
        if permuted:
            out.copy_(_finish(layout.from_tiles(place), epilogue, slice(None), slice(None)))
            if lse is not None and sums is not None:
                lse.copy_(layout.from_tiles(sums.unsqueeze(-1)).squeeze(-1))

    def _strided(
        self, group: TileGroup, place: Tensor, sums: Tensor | None, epilogue: Epilogue | None
    ) -> None:
        """Windows as views; equal steps between them make one call."""
        for first, count, start, step in group.runs():
            begin = group.first + first * group.size
            rows = slice(begin, begin + count * group.size)
            keys, values = (_windows(x, start, count, step, self.layout.window) for x in self.tiled)
            found = attend(self.q[:, rows].unflatten(1, (count, group.size)), keys, values, self.scale)
            _store(found, slice(None), rows, place, sums, epilogue)

    def _gathered(
        self, group: TileGroup, others: Tensor, place: Tensor, sums: Tensor | None, epilogue: Epilogue | None
    ) -> None:
        """Windows and other tokens copied together, a few heads at a time."""
        index = torch.cat([group.keys + self.layout.grid.before, others.expand(group.tiles, -1)], dim=1)
        heads, width = self.q.shape[0], self.q.shape[2]
        bytes_per_head = 2 * index.numel() * width * self.q.element_size()
        some = max(1, min(heads, _BUFFER.get(self.q.device.type, _BUFFER["cuda"]) // bytes_per_head))
        buffers = [x.new_empty(some, index.numel(), width) for x in (self.k, self.v)]
        exact = self.layout.exact(group)
        if exact is not None:
            exact = torch.nn.functional.pad(exact, (0, len(others)), value=True).unsqueeze(0)
        for head in range(0, heads, some):
            chosen = slice(head, min(head + some, heads))
            count = chosen.stop - head
            windows = []
            for source, buffer in zip((self.k, self.v), buffers):
                torch.index_select(source[chosen], 1, index.flatten(), out=buffer[:count])
                windows.append(buffer[:count].unflatten(1, index.shape))
            queries = self.q[chosen, group.queries].unflatten(1, (group.tiles, group.size))
            found = attend(queries, windows[0], windows[1], self.scale, exact)
            _store(found, chosen, group.queries, place, sums, epilogue)


def _windows(x: Tensor, start: int, count: int, step: int, width: int) -> Tensor:
    """(H, count, width, d) overlapping windows of ``x`` (H, tokens, d): a view."""
    heads, token, channel = x.stride()
    size = (x.shape[0], count, width, x.shape[2])
    return x.as_strided(size, (heads, step * token, token, channel), x.storage_offset() + start * token)


def _store(
    found: tuple[Tensor, Tensor],
    heads: slice,
    rows: slice,
    place: Tensor,
    sums: Tensor | None,
    epilogue: Epilogue | None,
) -> None:
    output, lse = found
    target = place[heads, rows]
    target.copy_(_finish(output.flatten(1, 2), epilogue, heads, rows))
    if sums is not None:
        sums[heads, rows] = lse.flatten(1, 2)


def _finish(output: Tensor, epilogue: Epilogue | None, heads: slice, rows: slice) -> Tensor:
    """``rho O_S + R``, while ``O_S`` is warm."""
    if epilogue is None:
        return output
    parts = (None if x is None else x[heads, rows] for x in (epilogue.rho, epilogue.residual))
    return reshape(output, *parts)


def _of(epilogue: Epilogue | None, sample: int) -> Epilogue | None:
    if epilogue is None:
        return None
    rho, residual = epilogue.rho, epilogue.residual
    return Epilogue(None if rho is None else rho[sample], None if residual is None else residual[sample])


def _statistic(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
