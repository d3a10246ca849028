"""One evaluation over several processes: split by manifest order, gather so that the result is that of one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from hasten.commands import Processes
from hasten.eval.functional.moments import Moments, merge_all
from hasten.extend import ConfigError

DTYPES = (torch.float32, torch.float64, torch.int64)
"""Of rows that travel between processes."""
BLOCK = 4096
"""Rows that travel at once."""


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


def shard(n: int, rank: int, world: int) -> range:
    """The contiguous part of ``n`` images that belongs to ``rank``; parts differ by at most one image.

    Nothing is padded or repeated (a ``DistributedSampler`` would duplicate images and bias the covariance).
    With more processes than images some parts are empty.

    Raises:
        ConfigError: if ``rank`` is not below ``world``.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} does not exist among {world} processes")
    return range(n * rank // world, n * (rank + 1) // world)


def own_rank() -> int:
    """Number of this process; 0 where no processes are connected."""
    return dist.get_rank() if _world(None) > 1 else 0


def own_part(n: int, batch_size: int) -> range:
    """The images, of ``n``, that this process reads; all of them where no processes are connected.

    Whole batches, because a network's output depends, in its last bits, on the batch: so the result is that of one
    process.
    """
    batches = shard(-(-n // batch_size), own_rank(), _world(None))
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


def collect_rows(rows: Tensor, add: Callable[[Tensor], None]) -> None:
    """Hand the rows of the other processes to ``add`` on the first one, in rank order and block by block.

    Args:
        rows: ``[N_rank, d]`` of this process, of a dtype in :data:`DTYPES`; their number may be zero. Every rank must
            call it.
        add: called on the first process with at most :data:`BLOCK` rows at once.
    """
    world = _world(None)
    if world == 1:
        return
    header = torch.tensor([len(rows), rows.shape[1], DTYPES.index(rows.dtype)])
    headers = [torch.empty_like(header) for _ in range(world)]
    dist.all_gather(headers, header)
    if own_rank() > 0:
        for start in range(0, len(rows), BLOCK):
            dist.send(rows[start : start + BLOCK].contiguous(), 0)
        return
    for sender in range(1, world):
        count, width, kind = headers[sender].tolist()
        for start in range(0, count, BLOCK):
            block = torch.empty(min(BLOCK, count - start), width, dtype=DTYPES[kind])
            dist.recv(block, sender)
            add(block)
