"""A Triton kernel: online softmax over a tile's keys, with ``rho O_S + R`` before the result leaves the registers.

Keys are found through an index, so that every mask runs without moving keys or values first. Importing this module
needs Triton; nothing does so before the kernel is chosen. Correct under ``TRITON_INTERPRET=1`` on a CPU.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

from hasten.plugins.rettention.kernels._base import Epilogue, SparseKernel
from hasten.plugins.rettention.layout import SparseLayout, TileGroup
from hasten.plugins.rettention.operands import Operands

__all__ = ["TritonKernel"]

_LOG2E = 1.4426950408889634


@triton.jit
def _tile_attention(  # type: ignore[no-untyped-def]
    q, k, v, out, lse, rho, residual, query_index, key_index, place, seen,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, r_b, r_h, r_n,
    heads, grid_tokens, all_tokens, before, first, size, window, width, half, scale,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_RHO: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_LSE: tl.constexpr, HAS_SEEN: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of a tile's queries, of one head of one sample."""
    blocks = tl.cdiv(size, BLOCK_M)
    tile = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    head = tl.program_id(1) % heads
    sample = tl.program_id(1) // heads

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    alive = row < size
    token = tl.load(query_index + first + tile * size + row, mask=alive, other=0)
    channel = tl.arange(0, BLOCK_D)
    inside = channel < DIM
    q_at = q + sample * q_b + head * q_h + (before + token)[:, None] * q_n + channel[None, :]
    queries = tl.load(q_at, mask=alive[:, None] & inside[None, :], other=0.0)
    if EXACT:
        here = tl.load(place + token, mask=alive, other=0)

    top = tl.full([BLOCK_M], -1.0e30, tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, width, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        valid = column < width
        key = tl.load(key_index + tile * width + column, mask=valid, other=0).to(tl.int64)
        keys = tl.load(
            k + sample * k_b + head * k_h + key[:, None] * k_n + channel[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        keep = valid[None, :]
        if HAS_SEEN:
            keep = keep & (tl.load(seen + sample * all_tokens + key, mask=valid, other=0) != 0)[None, :]
        if EXACT:
            there = tl.load(place + key - before, mask=column < window, other=0)
            near = tl.abs(here[:, None] - there[None, :]) <= half
            keep = keep & (near | (column >= window)[None, :])
        # A finite floor instead of minus infinity: a row may have no key in this block, but has one in another.
        scores = tl.where(keep, scores, -1.0e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - higher)
        weights = tl.exp2(scores - higher[:, None])
        values = tl.load(
            v + sample * v_b + head * v_h + key[:, None] * v_n + channel[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        total = total * shrink[:, None]
        total += tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        mass = mass * shrink + tl.sum(weights, 1)
        top = higher

    result = total / mass[:, None]
    pair = (sample * heads + head) * grid_tokens + token
    if HAS_LSE:
        tl.store(lse + pair, (top + tl.log2(mass)) * 0.6931471805599453, mask=alive)
    if HAS_RHO:
        result = result * tl.load(rho + pair, mask=alive, other=0.0)[:, None]
    if HAS_RESIDUAL:
        r_at = residual + sample * r_b + head * r_h + token[:, None] * r_n + channel[None, :]
        result += tl.load(r_at, mask=alive[:, None] & inside[None, :], other=0.0).to(tl.float32)
    o_at = out + sample * o_b + head * o_h + token[:, None] * o_n + channel[None, :]
    tl.store(o_at, result.to(out.dtype.element_ty), mask=alive[:, None] & inside[None, :])


class TritonKernel(SparseKernel):
    """The kernel above, once per group of equally large tiles."""

    name: ClassVar[str] = "triton"

    @override
    def refusal(self, device: torch.device, dtype: torch.dtype, dim: int, layout: SparseLayout) -> str | None:
        """CUDA only, unless interpreted; heads up to 256 wide; no double precision."""
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"it needs a CUDA device, not {device.type} (on a CPU: TRITON_INTERPRET=1, for tests only)"
        if dim > 256:
            return f"heads of {dim} channels are wider than 256"
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"it computes in half and single precision, not in {dtype}"
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
        """One launch per group."""
        layout, q = parts.layout, parts.query
        lse = q.new_empty(*q.shape[:2], layout.queries.tokens, dtype=torch.float32) if need_lse else None
        launch = _Launch(parts, out, lse, epilogue)
        for group, keys in zip(layout.groups, launch.tables["keys"]):
            launch.run(group, keys)
        return lse


def _tables(layout: SparseLayout) -> dict[str, Any]:
    """Index tensors in 32 bits, made once per layout and kept on it."""
    tables: dict[str, Any] | None = vars(layout).get("_triton")
    if tables is None:
        grid = layout.grid
        others = layout.context_tokens
        tables = {
            "queries": layout.tokens,
            "keys": [
                torch.cat([g.keys + grid.before, others.expand(g.tiles, -1)], 1).int().contiguous()
                for g in layout.groups
            ],
            "place": (torch.arange(grid.tokens, device=layout.device) % layout.shape.axes[2]).int(),
        }
        vars(layout)["_triton"] = tables
    return tables


class _Launch:
    """The arguments that all launches of one call share."""

    def __init__(self, parts: Operands, out: Tensor, lse: Tensor | None, epilogue: Epilogue | None) -> None:
        self._parts, self._out, self._lse = parts, out, lse
        self._qkv = [
            x if x.stride(-1) == 1 else x.contiguous() for x in (parts.query, parts.key, parts.value)
        ]
        self._rho = None if epilogue is None or epilogue.rho is None else epilogue.rho.contiguous()
        self._residual = None if epilogue is None else epilogue.residual
        self._seen = _seen(parts)
        self.tables = _tables(parts.layout)

    def run(self, group: TileGroup, keys: Tensor) -> None:
        """Launch the kernel on one group, whose tiles see ``keys`` (tiles, width)."""
        layout, (q, k, v), out = self._parts.layout, self._qkv, self._out
        samples, heads, _, dim = q.shape
        rows = min(64, max(16, triton.next_power_of_2(group.size)))
        programs = (group.tiles * triton.cdiv(group.size, rows), samples * heads)
        optional = (self._lse, self._rho, self._residual, self._seen)
        # A pointer that is never followed stands for what is not there.
        lse, rho, residual, seen = (out if x is None else x for x in optional)
        r_strides = (0, 0, 0) if self._residual is None else residual.stride()[:3]
        half = layout.shape.half
        _tile_attention[programs](
            q, k, v, out, lse, rho, residual,
            self.tables["queries"], keys, self.tables["place"], seen,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *r_strides,
            heads, layout.queries.tokens, layout.grid.total, layout.grid.before, group.first, group.size,
            layout.window, keys.shape[1], half or 0, self._parts.scale * _LOG2E,
            DIM=dim, BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_M=rows, BLOCK_N=64,
            HAS_RHO=self._rho is not None, HAS_RESIDUAL=self._residual is not None,
            HAS_LSE=self._lse is not None, HAS_SEEN=self._seen is not None, EXACT=half is not None,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        )  # fmt: skip


def _seen(parts: Operands) -> Tensor | None:
    """(B, N) bytes: which tokens count as keys; ``None`` for all."""
    if parts.visible is None:
        return None
    seen = torch.ones(len(parts.query), parts.layout.grid.total, dtype=torch.uint8, device=parts.query.device)
    seen[:, parts.layout.context_tokens] = parts.visible.to(torch.uint8)
    return seen
