"""Attention over one segment of keys that also returns the log-sum-exp, which merging segments needs.

Fused kernels compute it, but the public function of torch does not return it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.extend import EFFICIENT, FLASH, FLASH_CPU, aten

__all__ = ["attend_with_lse"]


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
