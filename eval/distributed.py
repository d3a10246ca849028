"""One evaluation over several processes: split by manifest order, gather so that the result is that of one
process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.moments import Moments, merge_all


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
