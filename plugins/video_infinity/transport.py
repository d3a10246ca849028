"""How messages travel between processes: one batch of point-to-point operations and one all-gather at a "
"time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Alone", "Distributed", "Flight", "Transport"]

Message = tuple[int, Tensor]
"""Rank of the other side, and what is sent to it or the buffer that is received into; contiguous."""


class Flight(Protocol):
    """Messages under way."""

    def wait(self) -> Tensor | None:
        """Wait until they have arrived; what all ranks contributed to the all-gather, (world, ...)."""


class Transport(Protocol):
    """A group of processes."""

    rank: int
    world: int

    def start(self, sends: Sequence[Message], receives: Sequence[Message], gather: Tensor | None) -> Flight:
        """Start one layer's messages. Every rank must call it, in the same order.

        Args:
            sends: what goes to neighbours, in order of their rank.
            receives: what comes from neighbours, in order of their rank; the two sides must mirror each other.
            gather: this rank's equally shaped contribution to an all-gather, or nothing.
        """


class _Landed:
    def __init__(self, gathered: Tensor | None) -> None:
        self._gathered = gathered

    def wait(self) -> Tensor | None:
        return self._gathered


class Alone:
    """A single process, which has nobody to talk to."""

    rank = 0
    world = 1

    def start(self, sends: Sequence[Message], receives: Sequence[Message], gather: Tensor | None) -> Flight:
        """Hand the contribution back."""
        if sends or receives:
            raise RuntimeError("a single process has no neighbours")
        return _Landed(None if gather is None else gather[None])


class Distributed:
    """The ranks of a ``torch.distributed`` group.

    Args:
        group: the process group.
        explain: turns an error of the back end into one that names the rank at fault.
    """

    def __init__(self, group: dist.ProcessGroup, explain: Callable[[BaseException], BaseException]) -> None:
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)
        self._group = group
        self._explain = explain

    def start(self, sends: Sequence[Message], receives: Sequence[Message], gather: Tensor | None) -> Flight:
        """Post everything without waiting."""
        operations = [
            dist.P2POp(function, tensor, group=self._group, group_peer=peer)
            for function, messages in ((dist.isend, sends), (dist.irecv, receives))
            for peer, tensor in messages
        ]
        try:
            works = dist.batch_isend_irecv(operations) if operations else []
            gathered = None
            if gather is not None:
                gathered = gather.new_empty(self.world, *gather.shape)
                # Flat, since back ends disagree on whether contributions are stacked or concatenated.
                flat = gathered.view(-1), gather.view(-1)
                work = dist.all_gather_into_tensor(*flat, group=self._group, async_op=True)
                works = [*works, work]
        except RuntimeError as error:
            raise self._explain(error) from error
        return _UnderWay(works, gathered, self._explain, (*sends, *receives))


class _UnderWay:
    def __init__(
        self,
        works: Sequence[dist.Work],
        gathered: Tensor | None,
        explain: Callable[[BaseException], BaseException],
        messages: Sequence[Message],
    ) -> None:
        self._works = works
        self._gathered = gathered
        self._explain = explain
        self._messages = messages  # the back end does not keep what it reads and writes alive

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
