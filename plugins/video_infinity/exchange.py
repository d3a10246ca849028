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

from hasten._recorder import Stopwatch
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
    """What a clip gets to see of other clips: frame axes like those of what was posted."""

    left: Tensor
    right: Tensor
    chosen: Tensor


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

    def post(self, kind: str, clip: int, x: Tensor, axis: int, halo: int, chosen: Sequence[int]) -> Pending:
        """Contribute the frames of a clip to a layer.

        Args:
            kind: kind of layer, for :attr:`traffic`.
            clip: index of the clip.
            x: its part of the layer's input.
            axis: the axis of ``x`` whose entries are the frames of the clip.
            halo: how many frames of each neighbour the layer needs.
            chosen: frames of the whole video that it needs, ascending.
        """
        return self._join(kind, clip, x, axis, halo, tuple(chosen))

    def share(self, kind: str, clip: int, x: Tensor) -> Pending:
        """Contribute a tensor of equal shape for every clip; all clips get those of all
        (:meth:`Pending.shares`)."""
        return self._join(kind, clip, x[None], 0, 0, None)

    def _join(
        self, kind: str, clip: int, x: Tensor, axis: int, halo: int, chosen: tuple[int, ...] | None
    ) -> Pending:
        number = self._counts[clip]
        self._counts[clip] += 1
        meeting = self._rounds.setdefault(number, _Round(self, kind, axis, halo, chosen))
        if (meeting.kind, meeting.halo) != (kind, halo):
            raise RuntimeError(
                f"clip {clip} is at a layer of kind {kind!r} while another is at {meeting.kind!r}"
            )
        meeting.add(clip, x)
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
        """The neighbours' frames and the chosen ones. Other clips run meanwhile."""
        context = self._round.result(self._clip)
        self._round.leave(self._clip)
        return context

    def shares(self) -> Tensor:
        """What all clips shared, in order of clips, (clips, ...)."""
        shared = self._round.chosen_frames()
        self._round.leave(self._clip)
        return shared


class _Round:
    """One layer's exchange."""

    def __init__(
        self, exchange: Exchange, kind: str, axis: int, halo: int, chosen: tuple[int, ...] | None
    ) -> None:
        self._exchange = exchange
        self.kind, self.axis, self.halo = kind, axis, halo
        places = exchange.places
        self._chosen = chosen
        """Frames, or every clip once where it is ``None``."""
        self._mine = [self._share_of(rank) for rank in range(len(places.ranks))]
        self._parts: dict[int, Tensor] = {}
        self._waiting = set(places.here)
        self._flight: Flight | None = None
        self._received: dict[int, Tensor] = {}
        self._gathered: Tensor | None = None
        self._landed = False

    def _share_of(self, rank: int) -> list[tuple[int, int]]:
        """(clip, place in the clip) of the chosen frames that a rank holds."""
        places = self._exchange.places
        if self._chosen is None:
            return [(clip, 0) for clip in places.ranks[rank]]
        return [
            (clip, frame - places.clips[clip].start)
            for clip in places.ranks[rank]
            for frame in self._chosen
            if frame in places.clips[clip]
        ]

    def add(self, clip: int, x: Tensor) -> None:
        self._parts[clip] = x
        if len(self._parts) == len(self._exchange.places.here):
            self._start()

    def _start(self) -> None:
        places, transport = self._exchange.places, self._exchange.transport
        first, last = places.here.start, places.here.stop - 1
        sends, receives = [], []
        if self.halo:
            for clip, edge, peer, other in (
                (first, 0, places.rank - 1, first - 1),
                (last, self._parts[last].shape[self.axis] - self.halo, places.rank + 1, last + 1),
            ):
                if 0 <= peer < transport.world:
                    piece = self._parts[clip].narrow(self.axis, edge, self.halo).contiguous()
                    sends.append((peer, piece))
                    self._received[other] = torch.empty_like(piece)
                    receives.append((peer, self._received[other]))
        gather = self._contribution() if any(self._mine) else None
        self._count(sends, receives, gather)
        self._flight = transport.start(sends, receives, gather)

    def _contribution(self) -> Tensor:
        """Chosen frames of this rank, padded to the most that any rank has."""
        mine, most = self._mine[self._exchange.places.rank], max(map(len, self._mine))
        pieces = [self._parts[clip].select(self.axis, place) for clip, place in mine]
        example = next(iter(self._parts.values())).select(self.axis, 0)
        stacked = example.new_zeros(most, *example.shape)
        for index, piece in enumerate(pieces):
            stacked[index] = piece
        return stacked

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
        watch = Stopwatch(next(iter(self._parts.values())).device)
        self._gathered = self._flight.wait()
        watch.stop()
        if self._exchange.transport.world > 1:
            self._exchange.traffic[self.kind].waits.append(watch)
        self._landed = True

    def result(self, clip: int) -> Context:
        self._land()
        return Context(self._edge(clip, clip - 1), self._edge(clip, clip + 1), self.chosen_frames())

    def _edge(self, clip: int, other: int) -> Tensor:
        """The ``halo`` frames of clip ``other`` next to ``clip``, none where there is no such clip."""
        if other in self._parts:
            part = self._parts[other]
            start = part.shape[self.axis] - self.halo if other < clip else 0
            return part.narrow(self.axis, start, self.halo)
        if other in self._received:
            return self._received[other]
        return self._parts[clip].narrow(self.axis, 0, 0)

    def chosen_frames(self) -> Tensor:
        """Chosen frames in order, on the frame axis (on the first axis for shares)."""
        self._land()
        if self._gathered is None:
            return next(iter(self._parts.values())).narrow(self.axis, 0, 0)
        pieces = [part[: len(share)] for part, share in zip(self._gathered, self._mine, strict=True)]
        return torch.cat(pieces).movedim(0, self.axis)

    def leave(self, clip: int) -> None:
        self._waiting.discard(clip)
        if not self._waiting:
            self._parts.clear()
            self._received.clear()
            self._exchange.forget(self)
