"""The processes that work on one run together, and which frames of the video this one holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["SINGLE", "Ranks", "gather"]

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Ranks:
    """Processes that share one run.

    A technique that takes decisions from data (skip this forward? which route?) must take the same one on every rank,
    or the next collective never returns: reduce over ``group`` first.

    Args:
        rank: this process, from 0.
        world: how many processes there are.
        group: their process group; ``None`` for a single process.
        frames: latent frames of the whole video that this rank holds; ``None`` where frames are not divided.
        clips: its frames again, as the contiguous clips it computes one after another.
    """

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None
    frames: range | None = None
    clips: tuple[range, ...] = ()


SINGLE = Ranks()
"""One process that holds everything."""


def gather(value: ValueT, group: dist.ProcessGroup | None = None) -> list[ValueT]:
    """One small picklable value from every connected process, in order of ranks; every process has to call it.

    Args:
        value: of this process; where no processes are connected it is the only one.
        group: the processes; ``None`` for all of them.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
