"""The operands of one attention call for the kernels; unsupported calls are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hasten.extend import UnsupportedError
from hasten.plugins.rettention.layout import SparseLayout

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.extend import AttentionCall

__all__ = ["Operands", "computed_type", "key_padding", "require_exact"]

_HIDDEN = -9e3
"""Additive masks mean "not at all" by anything at or below this: -10,000 in models, which is -9,984 in bfloat16."""


@dataclass(frozen=True)
class Operands:
    """One call: what is attended over, and under which mask. All tensors are on one device.

    Args:
        query: (B, H, N, d), the whole sequence.
        key: (B, H, N, d), repeated for grouped queries.
        value: (B, H, N, d), likewise.
        layout: the mask over the grid's tokens.
        scale: factor of the scores.
        visible: (B, context) boolean: which of the other tokens count as keys, ``None`` for all.
        keep: (B or 1, 1, 1, N) boolean, the same over the whole sequence, ``None`` for all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    layout: SparseLayout
    scale: float
    visible: Tensor | None = None
    keep: Tensor | None = None

    @classmethod
    def of(cls, call: AttentionCall, layout: SparseLayout, keep: Tensor | None) -> Operands:
        """The operands of ``call``, whose mask :func:`key_padding` has turned into ``keep``."""
        query, key, value = (x.to(computed_type(call)) for x in (call.query, call.key, call.value))
        if call.grouped and key.shape[1] != query.shape[1]:
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
        scale = query.shape[-1] ** -0.5 if call.scale is None else call.scale
        visible = None
        if keep is not None:
            visible = keep[:, 0, 0].index_select(1, layout.context_tokens).expand(len(query), -1)
        return cls(query, key, value, layout, scale, visible, keep)

    def context_rows(self) -> Tensor:
        """Attention (B, H, context, d) of the tokens that are not of the grid, over all keys."""
        queries = self.layout.context(self.query)
        return torch.nn.functional.scaled_dot_product_attention(
            queries, self.key, self.value, attn_mask=self.keep, scale=self.scale
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


def key_padding(call: AttentionCall, layout: SparseLayout, *, paired: bool) -> Tensor | None:
    """The mask of ``call`` as booleans (B or 1, 1, 1, N), ``None`` if it hides nothing.

    Args:
        call: the attention.
        layout: of its tokens.
        paired: the mask is one over the tokens, multiplied with itself. Then the picture's rows are all equal. The
            rows of hidden text are not needed, since nothing reads what they compute.

    Raises:
        UnsupportedError: it does not only hide the same text keys from all queries.
    """
    mask = call.mask
    if mask is None:
        return None
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    if paired and mask.shape[-2] != 1:
        mask = mask[..., layout.span.start : layout.span.start + 1, :]
    if mask.shape[-2] != 1 or mask.shape[1] != 1:
        raise UnsupportedError(
            f"{call.layer} gets an attention mask of shape {tuple(mask.shape)}, one row per query or head; "
            f"sparse attention supports only masks that hide the same text keys from all queries"
        )
    keep = mask if mask.dtype == torch.bool else mask > _HIDDEN
    if mask.dtype != torch.bool and not _constant(mask, keep):
        raise UnsupportedError(
            f"{call.layer} adds a bias to its scores, which sparse kernels do not support; exclude it with 'layers'"
        )
    if bool(keep.all()):
        return None
    if not bool(keep[..., layout.whole.span].all()):
        raise UnsupportedError(
            f"{call.layer} hides tokens of the picture from its queries; only text tokens may be hidden"
        )
    return keep


def _constant(mask: Tensor, keep: Tensor) -> bool:
    """Whether an additive mask adds the same to all kept keys of each sample, which softmax does not see."""
    highest = mask.masked_fill(~keep, -torch.inf).amax(-1)
    lowest = mask.masked_fill(~keep, torch.inf).amin(-1)
    return bool((highest <= lowest).all())
