"""Exchange of data between the clips of a video inside a layer, within a process and between processes.

Every clip calls :meth:`Exchange.post` at every layer that mixes frames, in the same order. The last clip of a process
to do so starts the messages to other processes, which are transferred while clips compute. :meth:`Pending.wait` lets
the other clips of the process run, and then waits for the messages that have not arrived.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.extend import Stopwatch
from hasten.plugins.video_infinity.lockstep import Lockstep
from hasten.plugins.video_infinity.transport import Flight, Message, Transport, as_bytes

__all__ = ["ClipAssignment", "Context", "Exchange", "LayerTraffic", "Pending"]


@dataclass(frozen=True)
class ClipAssignment:
    """Which rank computes which clips.

    Args:
        clips: the frames of every clip.
        ranks: the clips of every rank.
        rank: this rank.
    """

    clips: tuple[range, ...]
    ranks: tuple[range, ...]
    rank: int

    @property
    def here(self) -> range:
        """Clips of this rank."""
        return self.ranks[self.rank]

    def frames_of(self, rank: int) -> range:
        """Frames of all clips of a rank."""
        mine = self.ranks[rank]
        return range(self.clips[mine.start].start, self.clips[mine.stop - 1].stop)


@dataclass
class LayerTraffic:
    """Messages of one kind of layer to and from other processes."""

    rounds: int = 0
    sent: int = 0
    """Bytes of point-to-point messages and of contributions to all-gathers, counted once per receiver."""
    received: int = 0
    """Bytes received."""
    waits: list[Stopwatch] = field(default_factory=list)

    @property
    def exposed_milliseconds(self) -> float:
        """Time that computation waited for messages. Synchronises the device, so read it only after the run."""
        return sum(wait.milliseconds() for wait in self.waits)


@dataclass(frozen=True)
class Context:
    """Frames of other clips, stacked like the posted tensors, with the same frame axis.

    Args:
        left: frames next to the clip, of the previous clip.
        right: frames next to the clip, of the next clip.
        chosen: the global frames, or the shared tensors of all clips.
    """

    left: Tensor
    right: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class _Frames:
    """Tensors of equal shape with the frames of a clip."""

    tensors: tuple[Tensor, ...]
    axis: int

    def part(self, start: int, count: int) -> Tensor:
        """``count`` frames from ``start`` on, (tensors, ...), contiguous."""
        return torch.stack([tensor.narrow(self.axis, start, count) for tensor in self.tensors])

    def edge(self, count: int, last: bool) -> Tensor:
        """The first or the last frames."""
        return self.part(self.tensors[0].shape[self.axis] - count if last else 0, count)


class Exchange:
    """Exchanges data between the clips of this process and with other processes.

    Args:
        assignment: which rank computes which clips.
        transport: sends messages to other processes.
        lockstep: runs the clips of this process.
    """

    def __init__(self, assignment: ClipAssignment, transport: Transport, lockstep: Lockstep) -> None:
        self.assignment = assignment
        self.transport = transport
        self.lockstep = lockstep
        self.traffic: dict[str, LayerTraffic] = defaultdict(LayerTraffic)
        self._counts = dict.fromkeys(assignment.here, 0)
        self._rounds: dict[int, _Round] = {}

    def begin(self) -> None:
        """Start a forward of the denoiser."""
        self._counts = dict.fromkeys(self.assignment.here, 0)
        self._rounds.clear()

    def post(
        self, kind: str, clip: int, x: Sequence[Tensor], axis: int, halo: int, chosen: Sequence[int]
    ) -> Pending:
        """Send the frames of a clip that other clips need in a layer.

        Args:
            kind: kind of layer, for :attr:`traffic`.
            clip: index of the clip.
            x: the clip's part of the input of the layer: tensors of equal shape, which are stacked.
            axis: their frame axis.
            halo: number of frames that the layer needs from each neighbour.
            chosen: global frames that the layer needs, ascending.
        """
        return self._join(kind, clip, _Frames(tuple(x), axis), halo, tuple(chosen), None)

    def share(self, kind: str, clip: int, x: Tensor, edges: Tensor, axis: int, halo: int = 0) -> Pending:
        """Send one tensor to all clips, and edge frames to the neighbours, in the same round.

        Args:
            kind: kind of layer, for :attr:`traffic`.
            clip: index of the clip.
            x: a tensor of the same shape for every clip; :attr:`Context.chosen` stacks those of all clips.
            edges: the frames of the clip.
            axis: the frame axis of ``edges``.
            halo: number of frames that each neighbour needs.
        """
        return self._join(kind, clip, _Frames((edges,), axis), halo, None, x)

    def _join(
        self,
        kind: str,
        clip: int,
        frames: _Frames,
        halo: int,
        chosen: tuple[int, ...] | None,
        shared: Tensor | None,
    ) -> Pending:
        number = self._counts[clip]
        self._counts[clip] += 1
        meeting = self._rounds.setdefault(number, _Round(self, kind, halo, chosen))
        if (meeting.kind, meeting.halo) != (kind, halo):
            raise RuntimeError(
                f"clip {clip} is at a layer of kind {kind!r} while another is at {meeting.kind!r}"
            )
        meeting.add(clip, frames, shared)
        return Pending(meeting, clip)

    def forget(self, meeting: _Round) -> None:
        """Drop a round that every clip has seen."""
        for number, other in list(self._rounds.items()):
            if other is meeting:
                del self._rounds[number]


@dataclass
class Pending:
    """The exchange of one clip in one layer."""

    _round: _Round
    _clip: int

    def wait(self) -> Context:
        """The frames of the neighbours and the global frames, or the shared tensors. Other clips run meanwhile."""
        context = self._round.result(self._clip)
        self._round.leave(self._clip)
        return context


class _Round:
    """The exchange of one layer."""

    def __init__(self, exchange: Exchange, kind: str, halo: int, chosen: tuple[int, ...] | None) -> None:
        self._exchange = exchange
        self.kind, self.halo = kind, halo
        self._chosen = chosen
        """Global frames, or ``None`` if every clip shares a tensor."""
        self._mine = [self._share_of(rank) for rank in range(len(exchange.assignment.ranks))]
        self._frames: dict[int, _Frames] = {}
        self._shared: dict[int, Tensor | None] = {}
        self._waiting = set(exchange.assignment.here)
        self._flight: Flight | None = None
        self._received: dict[int, Tensor] = {}
        self._gathered: Tensor | None = None
        self._landed = False

    def _share_of(self, rank: int) -> list[tuple[int, int]]:
        """(clip, index in the clip) of the global frames of a rank; of all its clips if they share a tensor."""
        assignment = self._exchange.assignment
        if self._chosen is None:
            return [(clip, 0) for clip in assignment.ranks[rank]]
        return [
            (clip, frame - assignment.clips[clip].start)
            for clip in assignment.ranks[rank]
            for frame in self._chosen
            if frame in assignment.clips[clip]
        ]

    def add(self, clip: int, frames: _Frames, shared: Tensor | None) -> None:
        self._frames[clip], self._shared[clip] = frames, shared
        if len(self._frames) == len(self._exchange.assignment.here):
            self._start()

    def _start(self) -> None:
        assignment, transport = self._exchange.assignment, self._exchange.transport
        first, last = assignment.here.start, assignment.here.stop - 1
        sends, receives = [], []
        for clip, peer, other in (
            (first, assignment.rank - 1, first - 1),
            (last, assignment.rank + 1, last + 1),
        ):
            if self.halo and 0 <= peer < transport.world:
                piece = self._frames[clip].edge(self.halo, last=other > clip)
                sends.append((peer, piece))
                self._received[other] = torch.empty_like(piece)
                receives.append((peer, self._received[other]))
        gather = self._contribution() if any(self._mine) else None
        self._count(sends, receives, gather)
        self._flight = transport.start(sends, receives, gather)

    def _contribution(self) -> Tensor:
        """Global frames or shared tensors of this rank, padded to the largest number of any rank."""
        mine, most = self._mine[self._exchange.assignment.rank], max(map(len, self._mine))
        pieces = [self._piece(clip, place) for clip, place in mine]
        example = pieces[0] if pieces else self._piece(self._exchange.assignment.here.start, 0)
        if len(pieces) == most:
            return torch.stack(pieces)
        return torch.stack([*pieces, *[torch.zeros_like(example)] * (most - len(pieces))])

    def _piece(self, clip: int, place: int) -> Tensor:
        shared, frames = self._shared[clip], self._frames[clip]
        return frames.part(place, 1).squeeze(frames.axis + 1) if shared is None else shared

    def _count(self, sends: Sequence[Message], receives: Sequence[Message], gather: Tensor | None) -> None:
        traffic = self._exchange.traffic[self.kind]
        others = self._exchange.transport.world - 1
        shared = 0 if gather is None else as_bytes(gather) * others
        traffic.rounds += 1
        traffic.sent += sum(as_bytes(tensor) for _, tensor in sends) + shared
        traffic.received += sum(as_bytes(tensor) for _, tensor in receives) + shared

    def _land(self) -> None:
        self._exchange.lockstep.wait_until(lambda: self._flight is not None)
        if self._landed or self._flight is None:
            return
        watch = Stopwatch(next(iter(self._frames.values())).tensors[0].device)
        self._gathered = self._flight.wait()
        watch.stop()
        if self._exchange.transport.world > 1:
            self._exchange.traffic[self.kind].waits.append(watch)
        self._landed = True

    def result(self, clip: int) -> Context:
        self._land()
        return Context(self._edge(clip, clip - 1), self._edge(clip, clip + 1), self._chosen_frames(clip))

    def _edge(self, clip: int, other: int) -> Tensor:
        """The ``halo`` frames of clip ``other`` next to ``clip``; empty if there is no such clip."""
        if other in self._frames:
            return self._frames[other].edge(self.halo, last=other < clip)
        if other in self._received:
            return self._received[other]
        return self._frames[clip].edge(0, last=False)

    def _chosen_frames(self, clip: int) -> Tensor:
        """Global frames in order, on the frame axis; or shared tensors in order of clips, on the first axis."""
        if self._gathered is None:
            return self._frames[clip].edge(0, last=False)
        pieces = [part[: len(share)] for part, share in zip(self._gathered, self._mine, strict=True)]
        found = torch.cat(pieces)
        return found if self._chosen is None else found.movedim(0, self._frames[clip].axis + 1)

    def leave(self, clip: int) -> None:
        self._waiting.discard(clip)
        if not self._waiting:
            self._frames.clear()
            self._received.clear()
            self._exchange.forget(self)
