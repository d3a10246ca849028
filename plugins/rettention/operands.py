"""The operands of one attention call for the kernels; unsupported calls are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hasten.extend import UnsupportedError
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.masking import Masking

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.extend import AttentionCall

__all__ = ["Operands", "computed_type", "require_exact"]


@dataclass(frozen=True)
class Operands:
    """One call: what is attended over, and under which mask. All tensors are on one device.

    Args:
        query: (B, H, N, d), the whole sequence.
        key: (B, H, N, d), repeated for grouped queries.
        value: (B, H, N, d), likewise.
        layout: the mask over the grid's tokens.
        scale: factor of the scores.
        visible: (B, context) boolean: which of the other tokens kernels count as keys, ``None`` for all.
        biased: (B, 1, 1, context) what is added to the scores of others, which come in beside the kernel; minus
            infinity for those that do not, ``None`` if there are none.
        mask: what the mask of the call means, ``None`` for nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    layout: SparseLayout
    scale: float
    visible: Tensor | None = None
    biased: Tensor | None = None
    mask: Masking | None = None

    @classmethod
    def of(cls, call: AttentionCall, layout: SparseLayout, mask: Masking | None) -> Operands:
        """The operands of ``call``, whose mask means ``mask``."""
        query, key, value = (x.to(computed_type(call)) for x in (call.query, call.key, call.value))
        if call.grouped and key.shape[1] != query.shape[1]:
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
        scale = query.shape[-1] ** -0.5 if call.scale is None else call.scale
        visible = biased = None
        if mask is not None:
            visible = mask.row[:, 0, 0].index_select(1, layout.context_tokens).expand(len(query), -1)
            if visible.dtype != torch.bool:
                added, visible = visible, visible == 0
                biased = added.masked_fill(visible, -torch.inf)[:, None, None]
        return cls(query, key, value, layout, scale, visible, biased, mask)

    @property
    def row(self) -> Tensor | None:
        """:attr:`Masking.row`: the mask of the grid's queries over all keys."""
        return None if self.mask is None else self.mask.row

    def context_rows(self) -> Tensor:
        """Attention (B, H, context, d) of the tokens that are not of the grid, over all keys."""
        queries = self.layout.context(self.query)
        mask = None if self.mask is None else self.mask.others
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(queries.dtype)
        return torch.nn.functional.scaled_dot_product_attention(
            queries, self.key, self.value, attn_mask=mask, scale=self.scale
        )

    def empty_like_output(self, tokens: int) -> Tensor:
        """(B, H, tokens, d) in the memory order in which the processors go on: tokens outside, heads inside."""
        samples, heads, _, width = self.value.shape
        return self.query.new_empty(samples, tokens, heads, width).transpose(1, 2)


def computed_type(call: AttentionCall) -> torch.dtype:
    """The type that torch's attention computes ``call`` in: the query's, or that of autocast."""
    kind = call.query.device.type
    if torch.is_autocast_enabled(kind) and call.query.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return call.query.dtype


def require_exact(call: AttentionCall) -> None:
    """Refuse calls that windows or statistics of earlier steps do not support.

    Raises:
        UnsupportedError: the attention is causal, uses dropout, or is computed with gradients.
    """
    if call.causal:
        raise UnsupportedError(
            f"{call.layer} is causal: its windows would include future tokens; exclude it with 'layers'"
        )
    if call.dropout:
        raise UnsupportedError(
            f"{call.layer} uses attention dropout with probability {call.dropout}: set the model to "
            f"evaluation mode with .eval()"
        )
    if torch.is_grad_enabled() and call.query.requires_grad:
        raise UnsupportedError(
            f"{call.layer} is computed with gradients, but statistics of earlier steps have none: call the pipeline "
            f"under torch.no_grad()"
        )
