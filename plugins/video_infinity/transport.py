"""Messages between processes: point to point to neighbours, and all-gathers, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Distributed", "Flight", "SingleProcess", "Transport", "all_gather"]

all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Gathers the tensors of all ranks into one; renamed in torch 2.13."""

Message = tuple[int, Tensor]
"""Rank of the peer, and the tensor to send or the buffer to receive into; contiguous."""


class Flight(Protocol):
    """Messages that have been started."""

    def wait(self) -> Tensor | None:
        """Wait until all have arrived. Returns the contributions of all ranks to the all-gather, (world, ...)."""


class Transport(Protocol):
    """A group of processes."""

    rank: int
    world: int

    def start(self, sends: Sequence[Message], receives: Sequence[Message], gather: Tensor | None) -> Flight:
        """Start the messages of one layer. All ranks must call it, in the same order.

        Args:
            sends: messages to neighbours, in order of their rank.
            receives: buffers for messages from neighbours, in order of their rank; they must match the sends.
            gather: contribution to an all-gather, of the same shape on all ranks; ``None`` for no all-gather.
        """


class _Landed:
    def __init__(self, gathered: Tensor | None) -> None:
        self._gathered = gathered

    def wait(self) -> Tensor | None:
        return self._gathered


class SingleProcess:
    """A single process, without messages."""

    rank = 0
    world = 1

    def start(self, sends: Sequence[Message], receives: Sequence[Message], gather: Tensor | None) -> Flight:
        """Return the contribution of this process."""
        if sends or receives:
            raise RuntimeError("a single process has no neighbours")
        return _Landed(None if gather is None else gather[None])


class Distributed:
    """The ranks of a ``torch.distributed`` group.

    With NCCL, the point-to-point messages form one batch, which is one kernel, and the all-gather is another. With
    gloo, all messages are sent directly to their receivers, including those of the all-gather, since its collectives
    run in a separate thread, which doubles the latency of small messages.

    Args:
        group: the process group.
        explain: turns an error of the backend into one that names the lost ranks.
    """

    def __init__(self, group: dist.ProcessGroup, explain: Callable[[BaseException], BaseException]) -> None:
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)
        self._weak = ref(group)  # a strong reference would keep the threads of the group alive
        self._direct = dist.get_backend(group) == "gloo"
        self._explain = explain

    def start(self, sends: Sequence[Message], receives: Sequence[Message], gather: Tensor | None) -> Flight:
        """Start all messages without waiting."""
        gathered = None if gather is None else gather.new_empty(self.world, *gather.shape)
        try:
            if self._direct:
                works = self._post(sends, receives) + self._spread(gather, gathered)
            else:
                works = self._batch(sends, receives) + self._collect(gather, gathered)
        except RuntimeError as error:
            raise self._explain(error) from error
        return _UnderWay(works, gathered, self._explain, (*sends, *receives, (self.rank, gather)))

    @property
    def _group(self) -> dist.ProcessGroup:
        group = self._weak()
        if group is None:
            raise RuntimeError("the process group was destroyed")
        return group

    def _post(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[dist.Work]:
        group = self._group
        works = [dist.irecv(tensor, group=group, group_src=peer) for peer, tensor in receives]
        works += [dist.isend(tensor, group=group, group_dst=peer) for peer, tensor in sends]
        return [work for work in works if work is not None]  # None for ranks outside the group

    def _spread(self, gather: Tensor | None, gathered: Tensor | None) -> list[dist.Work]:
        if gather is None or gathered is None:
            return []
        gathered[self.rank] = gather
        others = [rank for rank in range(self.world) if rank != self.rank]
        return self._post([(rank, gather) for rank in others], [(rank, gathered[rank]) for rank in others])

    def _batch(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[dist.Work]:
        operations = [
            dist.P2POp(function, tensor, group=self._group, group_peer=peer)
            for function, messages in ((dist.isend, sends), (dist.irecv, receives))
            for peer, tensor in messages
        ]
        return dist.batch_isend_irecv(operations) if operations else []

    def _collect(self, gather: Tensor | None, gathered: Tensor | None) -> list[dist.Work]:
        if gather is None or gathered is None:
            return []
        # Flat, since backends differ in whether they stack or concatenate contributions.
        work = all_gather(gathered.view(-1), gather.view(-1), group=self._group, async_op=True)
        return [work]


class _UnderWay:
    def __init__(
        self,
        works: Sequence[dist.Work],
        gathered: Tensor | None,
        explain: Callable[[BaseException], BaseException],
        messages: Sequence[tuple[int, Tensor | None]],
    ) -> None:
        self._works = works
        self._gathered = gathered
        self._explain = explain
        self._messages = messages  # the backend does not keep its buffers alive

    def wait(self) -> Tensor | None:
        try:
            for work in self._works:
                work.wait()
        except RuntimeError as error:
            raise self._explain(error) from error
        self._works, self._messages = (), ()
        return self._gathered


def as_bytes(tensor: Tensor) -> int:
    """Size of a tensor's contents in bytes."""
    return tensor.numel() * torch.finfo(tensor.dtype).bits // 8
