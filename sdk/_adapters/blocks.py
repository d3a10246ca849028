"""Capability of a family: what its transformer blocks return, for caches that skip whole blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BlockOutputs"]


@dataclass(frozen=True)
class BlockOutputs:
    """Where the outputs of block classes are that diffusers' own caches do not know.

    Args:
        of: class name of a block -> index of the picture's tokens in what the block returns (0 where it returns a
            tensor), and index of the text's, ``None`` if it returns none.
    """

    of: Mapping[str, tuple[int, int | None]]
