"""Attention in segments: a layer whose keys a technique has divided, each part computed apart.

The technique that divides stands outside of the others. What it hands on is a call of its own, with fewer queries and
keys than the layer has; the log-sum-exp of its scores comes back beside the output, so that segments can be merged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hasten._compat import EFFICIENT, FLASH, FLASH_CPU, aten
from hasten._errors import PluginError

if TYPE_CHECKING:
    from hasten._attention import AttentionCall

__all__ = ["Segment", "Sums", "attend_segment", "attend_with_lse"]


@dataclass
class Sums:
    """Receives the log-sum-exp of a segment's scaled scores, (B, heads, queries) in single precision."""

    value: Tensor | None = None


@dataclass(frozen=True)
class Segment:
    """The part of a layer that a call computes, where a technique divides the layer over frames.

    Args:
        name: of the segment within its layer and part of the forward, the same at every step.
        frames: number of frames of the keys. Other tokens (text) may be around them as in the layer.
        rows: the frames among them that the queries are of.
        tokens: queries of the undivided call of the layer, of which the adapter knows the arrangement.
        sums: receives the log-sum-exp; ``None`` if it is not needed.
    """

    name: str
    frames: int
    rows: range
    tokens: int
    sums: Sums | None = field(default=None, compare=False)


def attend_segment(
    call: AttentionCall, proceed: Callable[[AttentionCall], Tensor], segment: Segment
) -> tuple[Tensor, Tensor]:
    """Compute ``call`` as one segment of its layer.

    Args:
        call: query, key and value of the segment, without a mask.
        proceed: of the handler that divides the layer.
        segment: what the call is; ``sums`` is filled in.

    Returns:
        Output (B, heads, queries, D), and log-sum-exp of the scaled scores (B, heads, queries) in single precision.

    Raises:
        PluginError: a handler answered without the log-sum-exp.
    """
    sums = Sums()
    output = proceed(replace(call, mask=None, segment=replace(segment, sums=sums)))
    if sums.value is None:
        raise PluginError(
            f"a technique computed a segment of {call.layer} without its log-sum-exp: it has to set "
            f"call.segment.sums.value, or must not claim that it supports divided attention"
        )
    return output, sums.value


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention without a mask.

    Args:
        query: (B, heads, T, D).
        key: (B, heads, S, D), S at least 1.
        value: (B, heads, S, D).
        scale: factor of the scores; ``None`` is ``D ** -0.5``.

    Returns:
        Output (B, heads, T, D) in the dtype of ``query``, and the log-sum-exp of the scaled scores (B, heads, T) in
        single precision.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    kind = query.device.type
    if kind == "cpu" and query.dtype != torch.float64:
        output, sums = aten(FLASH_CPU)(query, key, value, 0.0, False, attn_mask=None, scale=scale)
    elif kind == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
        output, sums = aten(FLASH)(query, key, value, 0.0, False, False, scale=scale)[:2]
    elif kind == "cuda" and query.dtype == torch.float32:
        output, sums = aten(EFFICIENT)(query, key, value, None, True, 0.0, False, scale=scale)[:2]
    else:
        scores = query @ key.transpose(-1, -2) * scale
        return scores.softmax(-1) @ value, scores.logsumexp(-1).float()
    return output, sums[..., : query.shape[2]].float()
