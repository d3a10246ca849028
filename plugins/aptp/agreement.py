"""Makes the processes that share a call use the same experts: those that rank 0 selects."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hasten.extend import HastenError, gather
from hasten.plugins.aptp.router import Decision

__all__ = ["agree"]


def agree(decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions of rank 0, compared with those of all other ranks.

    Raises:
        HastenError: there is no process group, or the decisions differ; all ranks raise it.
    """
    own = list(decisions)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise HastenError("aptp.ranks='together' needs an initialised torch.distributed process group")
    everyone = gather(own)
    chosen = [[decision.expert for decision in theirs] for theirs in everyone]
    for rank, experts in enumerate(chosen):
        if experts != chosen[0]:
            raise HastenError(
                f"rank {rank} routes its prompts to experts {experts}, rank 0 to {chosen[0]}; give every rank the same "
                f"prompts and the same bundle, or set aptp.ranks='independent' if they do not share a call"
            )
    return everyone[0]
