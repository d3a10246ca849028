"""Claims: which slots of a pipeline a technique uses, and how. The host refuses conflicting combinations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Access(Enum):
    """How a technique uses a slot."""

    EXCLUSIVE = "exclusive"
    DIVIDES = "divides"
    WRITES = "writes"
    READS = "reads"


SLOTS: dict[str, str] = {
    "weights.structure": "shapes of the denoiser's parameters",
    "attention.self": "the self-attention computation of a layer",
    "attention.kv": "the key-value cache",
    "tokens.shape": "how many tokens a forward has",
    "steps.schedule": "which noise levels are visited",
    "batch.branches": "how conditional and unconditional branches share a batch",
    "ranks.frames": "which process holds which frames",
    "ranks.sequence": "which process holds which tokens",
}
"""Every slot and its meaning."""


@dataclass(frozen=True)
class Claim:
    """One technique's use of one slot.

    Args:
        slot: a key of :data:`SLOTS`.
        access: exclusive, divides, writes or reads.
        modules: qualified names of the modules it applies to (``"transformer.blocks.0.attn"``); ``None`` is all.
        follows_writes: for readers: whether the technique supports changes of the slot during a run.
        follows_division: whether the technique computes a part of the slot rightly where another one divides it.
    """

    slot: str
    access: Access
    modules: frozenset[str] | None = None
    follows_writes: bool = True
    follows_division: bool = False
