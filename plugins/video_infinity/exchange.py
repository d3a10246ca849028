"""What the clips of a video tell each other inside a layer, wherever they are computed.

Every clip calls :meth:`Exchange.post` at every layer that mixes frames, in the same order. The last clip of a process
to do so starts the messages to other processes, so that they travel while clips compute; :meth:`Pending.wait` hands
over to the other clips of the process, and then waits for what has not arrived yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.extend import Stopwatch
from hasten.plugins.video_infinity.lockstep import Lockstep
from hasten.plugins.video_infinity.transport import Flight, Transport, as_bytes

__all__ = ["Context", "Exchange", "Pending", "Places", "Traffic"]


@dataclass(frozen=True)
class Places:
    """Where clips are.

    Args:
        clips: frames of every clip of the video.
        ranks: clips of every rank.
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
class Traffic:
    """What a kind of layer sent to and received from other processes."""

    rounds: int = 0
    sent: int = 0
    """Bytes of point-to-point messages and of the contribution to all-gathers, once per receiver."""
    received: int = 0
    waits: list[Stopwatch] = field(default_factory=list)

    @property
    def exposed_milliseconds(self) -> float:
        """Time that computation stood still. Waits for the device, so ask only after the run."""
        return sum(wait.milliseconds() for wait in self.waits)


@dataclass(frozen=True)
class Context:
    """What a clip gets to see of other clips: stacked like what was posted, with frame axes in the same places."""

    left: Tensor
    right: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class _Frames:
    """Tensors of equal shape with a clip's frames."""

    tensors: tuple[Tensor, ...]
    axis: int

    def part(self, start: int, count: int) -> Tensor:
        """Frames ``start`` and following, (tensors, ...), contiguous."""
        return torch.stack([tensor.narrow(self.axis, start, count) for tensor in self.tensors])

    def edge(self, count: int, last: bool) -> Tensor:
        """The first or the last frames."""
        return self.part(self.tensors[0].shape[self.axis] - count if last else 0, count)


class Exchange:
    """Meeting point of the clips of this process.

    Args:
        places: where clips are.
        transport: the way to other processes.
        lockstep: what the clips of this process run in.
    """

    def __init__(self, places: Places, transport: Transport, lockstep: Lockstep) -> None:
        self.places = places
        self.transport = transport
        self.lockstep = lockstep
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)
        self._counts = dict.fromkeys(places.here, 0)
        self._rounds: dict[int, _Round] = {}

    def begin(self) -> None:
        """Begin a forward."""
        self._counts = dict.fromkeys(self.places.here, 0)
        self._rounds.clear()

    def post(
        self, kind: str, clip: int, x: Sequence[Tensor], axis: int, halo: int, chosen: Sequence[int]
    ) -> Pending:
        """Contribute the frames of a clip to a layer.

        Args:
            kind: kind of layer, for :attr:`traffic`.
            clip: index of the clip.
            x: its part of the layer's input: tensors of equal shape, which are stacked where they are sent.
            axis: their axis whose entries are the frames of the clip.
            halo: how many frames of each neighbour the layer needs.
            chosen: frames of the whole video that it needs, ascending.
        """
        return self._join(kind, clip, _Frames(tuple(x), axis), halo, tuple(chosen), None)

    def share(self, kind: str, clip: int, x: Tensor, edges: Tensor, axis: int, halo: int = 0) -> Pending:
        """Contribute a tensor of equal shape for every clip, and the frames next to the neighbours in one go.

        Args:
            kind: kind of layer, for :attr:`traffic`.
            clip: index of the clip.
            x: what every clip gets to see of all, :attr:`Context.chosen` with the clips in front.
            edges: the clip's frames.
            axis: the axis of ``edges`` with frames.
            halo: how many of them each neighbour needs.
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
    """A clip's part in one round."""

    _round: _Round
    _clip: int

    def wait(self) -> Context:
        """The neighbours' frames and the chosen ones, or what all clips shared. Other clips run meanwhile."""
        context = self._round.result(self._clip)
        self._round.leave(self._clip)
        return context


class _Round:
    """One layer's exchange."""

    def __init__(self, exchange: Exchange, kind: str, halo: int, chosen: tuple[int, ...] | None) -> None:
        self._exchange = exchange
        self.kind, self.halo = kind, halo
        self._chosen = chosen
        """Frames, or ``None`` where every clip shares a tensor."""
        self._mine = [self._share_of(rank) for rank in range(len(exchange.places.ranks))]
        self._frames: dict[int, _Frames] = {}
        self._shared: dict[int, Tensor | None] = {}
        self._waiting = set(exchange.places.here)
        self._flight: Flight | None = None
        self._received: dict[int, Tensor] = {}
        self._gathered: Tensor | None = None
        self._landed = False

    def _share_of(self, rank: int) -> list[tuple[int, int]]:
        """(clip, place in the clip) of the chosen frames that a rank holds; its clips where they share."""
        places = self._exchange.places
        if self._chosen is None:
            return [(clip, 0) for clip in places.ranks[rank]]
        return [
            (clip, frame - places.clips[clip].start)
            for clip in places.ranks[rank]
            for frame in self._chosen
            if frame in places.clips[clip]
        ]

    def add(self, clip: int, frames: _Frames, shared: Tensor | None) -> None:
        self._frames[clip], self._shared[clip] = frames, shared
        if len(self._frames) == len(self._exchange.places.here):
            self._start()

    def _start(self) -> None:
        places, transport = self._exchange.places, self._exchange.transport
        first, last = places.here.start, places.here.stop - 1
        sends, receives = [], []
        for clip, peer, other in ((first, places.rank - 1, first - 1), (last, places.rank + 1, last + 1)):
            if self.halo and 0 <= peer < transport.world:
                piece = self._frames[clip].edge(self.halo, last=other > clip)
                sends.append((peer, piece))
                self._received[other] = torch.empty_like(piece)
                receives.append((peer, self._received[other]))
        gather = self._contribution() if any(self._mine) else None
        self._count(sends, receives, gather)
        self._flight = transport.start(sends, receives, gather)

    def _contribution(self) -> Tensor:
        """Chosen frames of this rank, or its shares, padded to the most that any rank has."""
        mine, most = self._mine[self._exchange.places.rank], max(map(len, self._mine))
        pieces = [self._piece(clip, place) for clip, place in mine]
        example = pieces[0] if pieces else self._piece(self._exchange.places.here.start, 0)
        if len(pieces) == most:
            return torch.stack(pieces)
        return torch.stack([*pieces, *[torch.zeros_like(example)] * (most - len(pieces))])

    def _piece(self, clip: int, place: int) -> Tensor:
        shared, frames = self._shared[clip], self._frames[clip]
        return frames.part(place, 1).squeeze(frames.axis + 1) if shared is None else shared

    def _count(self, sends: Sequence, receives: Sequence, gather: Tensor | None) -> None:
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
        """The ``halo`` frames of clip ``other`` next to ``clip``, none where there is no such clip."""
        if other in self._frames:
            return self._frames[other].edge(self.halo, last=other < clip)
        if other in self._received:
            return self._received[other]
        return self._frames[clip].edge(0, last=False)

    def _chosen_frames(self, clip: int) -> Tensor:
        """Chosen frames in order, on the frame axis; shares in order of clips, on the first axis."""
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
