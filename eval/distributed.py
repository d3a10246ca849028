"""One evaluation over several processes: split by manifest order, gather so that the result is that of one
process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hasten.commands import Processes
from hasten.eval.functional.moments import Moments, merge_all
from hasten.extend import ConfigError

ValueT = TypeVar("ValueT")


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes of a ``torchrun`` or ``accelerate launch``, connected (gloo) for the length of the block."""
    processes = Processes.from_environment()
    if processes.world == 1 or dist.is_initialized():
        yield processes
        return
    dist.init_process_group("gloo")
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def gather(value: ValueT) -> list[ValueT]:
    """``value`` of every process, in rank order, on every rank; every rank must call it."""
    world = _world(None)
    if world == 1:
        return [value]
    values: list[ValueT | None] = [None] * world
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def shard(n: int, rank: int, world: int) -> range:
    """The contiguous part of ``n`` images that belongs to ``rank``; parts differ by at most one image.

    Nothing is padded or repeated (a ``DistributedSampler`` would duplicate images and bias the covariance).
    With more processes than images some parts are empty.

    Raises:
        ConfigError: if ``rank`` is not below ``world``.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"Rank {rank} does not exist among {world} processes.")
    return range(n * rank // world, n * (rank + 1) // world)


def own_part(n: int, batch_size: int) -> range:
    """The images, of ``n``, that this process reads; all of them where no processes are connected.

    Whole batches, because a network's output depends, in its last bits, on the batch: so the result is that of one
    process.
    """
    batches = shard(-(-n // batch_size), dist.get_rank() if _world(None) > 1 else 0, _world(None))
    return range(batches.start * batch_size, min(n, batches.stop * batch_size))


def _world(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def gather_moments(moments: Moments, group: dist.ProcessGroup | None = None) -> Moments:
    """Moments of all processes together, merged in rank order, the same bits on every rank.

    Every rank must call it, also one without images (with ``Moments.empty(d)``).
    """
    world = _world(group)
    if world == 1:
        return moments
    packed = moments.pack()
    parts = [torch.empty_like(packed) for _ in range(world)]
    dist.all_gather(parts, packed, group=group)
    return merge_all(map(Moments.unpack, parts))


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Rows of all processes, in rank order, on every rank; their numbers may differ and be zero.

    Args:
        rows: ``[N_rank, ...]``, equal beyond the first dimension.
        group: process group.
    """
    world = _world(group)
    if world == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count, group=group)
    sizes = [int(c) for c in counts]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
