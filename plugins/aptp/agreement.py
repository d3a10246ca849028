"""Several processes on one call have to run the same expert: rank 0 decides, and the others notice if they differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hasten.extend import HastenError, gather
from hasten.plugins.aptp.router import Decision

__all__ = ["agree"]


def agree(decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions of rank 0, checked against those of every other rank.

    Raises:
        HastenError: there is no process group, or the ranks route differently; then it is raised on every rank.
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
