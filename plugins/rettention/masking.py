"""What the attention mask of a call means for sparse attention; masks that cannot be kept to are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hasten.extend import UnsupportedError
from hasten.plugins.rettention.layout import SparseLayout

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.extend import AttentionCall

__all__ = ["Masking", "masking"]

_HIDDEN = -9e3
"""Additive masks mean "not at all" by anything at or below this: -10,000 in models, which is -9,984 in bfloat16."""


@dataclass(frozen=True)
class Masking:
    """A mask whose row is the same for all queries of the grid, and constant over the grid's keys.

    Args:
        row: (B or 1, 1, 1, N) that row: which keys count (boolean), or what is added to their scores (single
            precision, 0 for keys of the grid, minus infinity for hidden ones).
        shift: (B or 1, 1, 1) what the model's mask adds to all scores of the row beside; ``None`` for 0.
        others: (B or 1, 1, 1 or context, N) the mask of the other tokens' queries.
    """

    row: Tensor
    shift: Tensor | None
    others: Tensor


def masking(call: AttentionCall, layout: SparseLayout, *, paired: bool = False) -> Masking | None:
    """The mask of ``call``, ``None`` if it does nothing.

    Args:
        call: the attention.
        layout: of its tokens.
        paired: the mask is one over the tokens, multiplied with itself. Then the picture's rows are all equal.

    Raises:
        UnsupportedError: it treats tokens of the picture differently.
    """
    mask = call.mask
    if mask is None:
        return None
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    row, others = _rows(call, layout, mask, paired)
    keep = row if row.dtype == torch.bool else row > _HIDDEN
    if not bool(keep[..., layout.whole.span].all()):
        raise UnsupportedError(
            f"{call.layer} hides tokens of the picture from its queries; only text tokens may be hidden"
        )
    added, shift = _added(call, layout, row, keep)
    if added is None:
        added = keep
        others = keep if others is row else others
    free = others.all() if others.dtype == torch.bool else (others == 0).all()
    if shift is None and added.dtype == torch.bool and bool(added.all()) and bool(free):
        return None
    return Masking(added, shift, others)


def _rows(call: AttentionCall, layout: SparseLayout, mask: Tensor, paired: bool) -> tuple[Tensor, Tensor]:
    """The row of the grid's queries, and the rows of the other tokens' queries."""
    if mask.shape[1] == 1 and mask.shape[-2] == 1:
        return mask, mask
    if mask.shape[1] == 1:
        rows = mask[:, :, layout.span]
        row = rows[:, :, :1]
        if paired or bool((rows == row).all()):
            return row, mask.index_select(2, layout.context_rows)
    raise UnsupportedError(
        f"{call.layer} gets an attention mask of shape {tuple(mask.shape)}, one row per query or head, which differ "
        f"between the picture's queries; sparse attention supports only masks that treat all of them alike"
    )


def _added(
    call: AttentionCall, layout: SparseLayout, row: Tensor, keep: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What an additive ``row`` adds beyond the grid's keys, and what it adds to those; ``None`` for nothing."""
    if row.dtype == torch.bool:
        return None, None
    level = row[..., layout.whole.span]
    if bool((level != level[..., :1]).any()):
        raise UnsupportedError(
            f"{call.layer} adds a bias to its scores that differs between keys of the picture, which sparse kernels "
            f"do not support; exclude it"
        )
    relative = (row.float() - level[..., :1].float()).masked_fill(~keep, -torch.inf)
    shift = level[..., 0].float()
    flat = not bool(relative[keep].any())
    moved = bool(shift.any())
    if call.segment is not None and (moved or not flat):
        raise UnsupportedError(
            f"{call.layer} adds a bias to its scores, which segments of a layer do not support"
        )
    return None if flat else relative, shift if moved else None
