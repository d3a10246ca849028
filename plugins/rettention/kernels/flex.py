"""FlexAttention, compiled once per shape, with block tables made from the layout (never from all pairs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from hasten.plugins.rettention.kernels._base import Epilogue, SparseKernel
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.math import reshape
from hasten.plugins.rettention.operands import Operands

__all__ = ["FlexKernel"]

_BLOCK = 128


class FlexKernel(SparseKernel):
    """Queries and keys in tile order, other tokens behind them.

    Args:
        compiled: compile the operator. Without it FlexAttention computes all pairs: for tests only.
    """

    name: ClassVar[str] = "flex"

    def __init__(self, compiled: bool = True) -> None:
        from torch.nn.attention import flex_attention as flex

        if not hasattr(flex, "AuxRequest"):
            raise ImportError(
                f"torch {torch.__version__} has no torch.nn.attention.flex_attention.AuxRequest"
            )
        self._flex: Any = flex
        self._compiled = compiled
        function: Any = flex.flex_attention
        # Past its limit of recompilations torch would compute all pairs, silently, if it were not for fullgraph.
        if compiled:
            function = torch.compile(function, dynamic=False, fullgraph=True)
        self._call: Callable[..., Any] = function

    @override
    def refusal(self, device: torch.device, dtype: torch.dtype, dim: int, layout: SparseLayout) -> str | None:
        """Compiled FlexAttention returns no log-sum-exp on a CPU."""
        if device.type != "cuda" and self._compiled:
            return f"compiled FlexAttention returns no log-sum-exp on a {device.type}"
        if dim < 16 and self._compiled:
            return f"heads of {dim} channels are narrower than 16"
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
        """One call."""
        layout, whole = parts.layout, parts.layout.whole
        queries = layout.to_tiles(parts.query[:, :, layout.span])
        keys, values = (
            torch.cat([whole.to_tiles(x[:, :, whole.span]), layout.context(x)], 2)
            for x in (parts.key, parts.value)
        )
        found, aux = self._call(
            queries,
            keys,
            values,
            block_mask=self._block_mask(layout, parts.visible),
            scale=parts.scale,
            return_aux=self._flex.AuxRequest(lse=True),
        )
        found = layout.from_tiles(found)
        out.copy_(found if epilogue is None else reshape(found, epilogue.rho, epilogue.residual))
        return layout.from_tiles(aux.lse.unsqueeze(-1)).squeeze(-1) if need_lse else None

    def _block_mask(self, layout: SparseLayout, visible: Tensor | None) -> Any:
        """Tables are kept on the layout; the mask itself where nothing is hidden."""
        known = vars(layout).setdefault("_flex", {})
        if visible is None and "mask" in known:
            return known["mask"]
        if "tables" not in known:
            known["tables"] = _block_tables(layout)
        some, whole = known["tables"]
        if visible is not None:  # blocks with other tokens have to look at each of them
            tail = torch.arange(some.shape[1], device=some.device) >= layout.grid.tokens // _BLOCK
            some, whole = some | (whole & tail), whole & ~tail
        counted = [_compressed(blocks) for blocks in (some, whole)]
        mask = self._flex.BlockMask.from_kv_blocks(
            *counted[0],
            *counted[1],
            BLOCK_SIZE=_BLOCK,
            mask_mod=_mask_mod(layout, visible),
            seq_lengths=(layout.queries.tokens, layout.grid.total),
        )
        if visible is None:
            known["mask"] = mask
        return mask


def _mask_mod(layout: SparseLayout, visible: Tensor | None) -> Callable[..., Tensor]:
    """Whether a pair of places counts, from the corner of the query's window and the place of the key on the axes."""
    shape, count = layout.shape, layout.grid.tokens
    device = layout.device
    order = layout.whole.tokens
    _, rows, columns = shape.axes
    axes = torch.stack([order // (rows * columns), order // columns % rows, order % columns])
    position = layout.tokens % columns
    sizes = torch.cat([torch.full((g.tiles,), g.size) for g in layout.groups])
    corner = layout.corners.repeat_interleave(sizes, 0).T.contiguous().to(device)
    half = shape.half

    def keep(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        inside = key < count
        place = torch.where(inside, key, 0)
        near = inside
        for axis in range(3):
            low = corner[axis][query]
            here = axes[axis][place]
            near = near & (here >= low) & (here < low + shape.window[axis])
        if half is not None:
            near = near & ((axes[2][place] - position[query]).abs() <= half)
        other = ~inside
        if visible is not None:
            other = other & visible[sample, torch.where(inside, 0, key - count)]
        return near | other

    return keep


def _block_tables(layout: SparseLayout) -> tuple[Tensor, Tensor]:
    """(query blocks, key blocks): which have a pair that is kept but not all of them, and which keep all."""
    grid, rows, whole = layout.grid, layout.queries.tokens, layout.whole
    shape = -(-rows // _BLOCK), -(-grid.total // _BLOCK)
    kept = torch.zeros(shape, dtype=torch.int64, device=layout.device)
    places = torch.arange(grid.tokens, device=layout.device) if whole.places is None else whole.places
    for group in layout.groups:
        begins = group.first + torch.arange(group.tiles, device=layout.device) * group.size
        query_blocks = torch.arange(shape[0], device=layout.device)[:, None] * _BLOCK
        queries = (
            torch.minimum(begins + group.size, query_blocks + _BLOCK) - torch.maximum(begins, query_blocks)
        ).clamp(0)
        keys = torch.zeros(group.tiles, shape[1], dtype=torch.int64, device=layout.device)
        keys.scatter_add_(1, places[group.keys] // _BLOCK, torch.ones_like(group.keys))
        kept += (queries.double() @ keys.double()).long()
    edges = torch.arange(shape[1], device=layout.device) * _BLOCK
    others = ((edges + _BLOCK).clamp(max=grid.total) - edges.clamp(min=grid.tokens)).clamp(0)
    present = (rows - torch.arange(shape[0], device=layout.device) * _BLOCK).clamp(max=_BLOCK)
    kept += present[:, None] * others
    full = kept == _BLOCK * _BLOCK
    if layout.shape.half is not None:
        full &= False  # the token-exact mask drops pairs inside of windows
    return (kept > 0) & ~full, full


def _compressed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number and column numbers of the set entries of each row, as BlockMask wants them."""
    numbers = blocks.sum(1, dtype=torch.int32)
    columns = torch.argsort(blocks.int(), dim=1, descending=True, stable=True).int()
    return numbers[None, None], columns[None, None].contiguous()
