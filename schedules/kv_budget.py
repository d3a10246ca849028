"""How many keys and values a head may keep, and what they weigh. Pure arithmetic.

Conventions: ``T_K`` counts the tokens of all scales, the last one included. A ratio ``rho`` is the share of
``T_K`` that is removed (HACK, arXiv 2504.09261).
"""

from __future__ import annotations

import math

__all__ = ["MINIMUM", "kept_tokens", "kv_bytes", "split_budget"]

MINIMUM = 8
"""Fewest tokens a head may be left with."""


def kept_tokens(total: int, ratio: float) -> int:
    """Mean budget ``B = floor((1 - rho) T_K)`` of tokens per head."""
    return math.floor((1.0 - ratio) * total + 1e-9)


def split_budget(
    total: int,
    mean: int,
    contextual: float,
    *,
    share: float = 0.10,
    part: float = 1 / 3,
    least: int = MINIMUM,
) -> tuple[int, int]:
    """Budgets of contextual and structural heads whose mean over all heads is at most ``mean``.

    Contextual heads get ``min(share * T_K, part * B)``; structural heads get what that leaves, at most ``T_K``;
    what they cannot use goes back to the contextual heads.

    Args:
        total: ``T_K``.
        mean: ``B``, at least ``least``.
        contextual: share of the heads that are contextual, in [0, 1].
        share: upper bound of a contextual budget, as a share of ``T_K``.
        part: upper bound of a contextual budget, as a share of ``B``.
        least: no budget is smaller.

    Returns:
        Tokens of a contextual and of a structural head.
    """
    mean = min(mean, total)
    if contextual in (0.0, 1.0):
        return mean, mean
    few = max(least, math.floor(min(share * total, part * mean)))
    many = math.floor((mean - contextual * few) / (1 - contextual) + 1e-9)
    if many >= total:
        many = total
        few = max(few, math.floor((mean - (1 - contextual) * total) / contextual + 1e-9))
    return min(few, total), max(least, many)


def kv_bytes(rows: int, heads_tokens: int, dim: int, size: float) -> int:
    """Bytes of keys and values.

    Args:
        rows: of the batch; guidance doubles it.
        heads_tokens: tokens kept, summed over all heads of all layers.
        dim: channels of a head.
        size: bytes of one number.
    """
    return round(rows * heads_tokens * 2 * dim * size)
