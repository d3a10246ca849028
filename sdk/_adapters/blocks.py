"""Capabilities of a family for caches that skip whole blocks: what these return, and settings that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["BlockOutputs", "CacheDefaults"]


@dataclass(frozen=True)
class BlockOutputs:
    """Where the outputs of block classes are that diffusers' own caches do not know.

    Args:
        of: class name of a block -> index of the picture's tokens in what the block returns (0 where it returns a
            tensor), and index of the text's, ``None`` if it returns none.
    """

    of: Mapping[str, tuple[int, int | None]]


@dataclass(frozen=True)
class CacheDefaults:
    """Settings of step caches that somebody has found for a family.

    Args:
        first_block: relative change of the first block's residual below which the other blocks are skipped.
        source: who found it.
        ratios: name of the ratios of magnitudes that come with diffusers, ``None`` if there are none for the family.
    """

    first_block: float
    source: str
    ratios: Literal["flux"] | None = None
