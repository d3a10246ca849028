"""Progress of decoding on all processes.

Decoding may take longer than the time limit for messages, so the processes use the store instead.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from hasten.extend import RankError
from hasten.plugins.video_infinity.heartbeat import HEARTBEAT_TIMEOUT
from hasten.plugins.video_infinity.process_mesh import ProcessMesh

__all__ = ["Progress"]

_numbers = itertools.count()
"""All processes make their videos in the same order, so a number identifies a video."""


@dataclass(frozen=True)
class _Note:
    frames: int = 0
    state: Literal["writing", "done", "failed"] = "writing"


class Progress:
    """Progress of all processes on one video. A context manager that records a failure.

    Args:
        processes: the processes.
        tell: called on rank 0 with the number of frames written.
    """

    def __init__(self, processes: ProcessMesh, tell: Callable[[str], None]) -> None:
        self._processes, self._tell = processes, tell
        self._name = f"video/{next(_numbers)}"
        self._mine = _Note()

    def __enter__(self) -> Progress:
        self._write(self._mine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, RankError):  # an error of another process
            self._fail()

    def add(self, frames: int) -> None:
        """Record ``frames`` more written frames."""
        self._write(_Note(self._mine.frames + frames))
        self._tell_all()

    def finish(self) -> None:
        """Record that the part of this process is complete."""
        self._write(_Note(self._mine.frames, "done"))

    @property
    def frames(self) -> int:
        """Number of frames that all processes have written."""
        return sum(self._read(rank).frames for rank in range(self._processes.world))

    def wait(self, ranks: Iterable[int]) -> int:
        """Wait until all ``ranks`` are done. Returns the number of frames they have written.

        Raises:
            RankError: a rank failed, ended, or has written nothing within the time limit.
        """
        processes, waited = self._processes, list(ranks)
        seen = {rank: (_Note(), time.monotonic()) for rank in waited}
        while True:
            try:
                notes = {rank: self._read(rank) for rank in waited}
            except RuntimeError as error:  # the process that hosted the store is gone
                raise processes.explain(error) from error
            for rank, note in notes.items():
                if note != seen[rank][0]:
                    seen[rank] = (note, time.monotonic())
                if note.state != "done":
                    self._require(rank, note, time.monotonic() - seen[rank][1])
            if all(note.state == "done" for note in notes.values()):
                return sum(note.frames for note in notes.values())
            self._tell_all()
            time.sleep(0.2)

    def _require(self, rank: int, note: _Note, silent: float) -> None:
        """Raise an error if waiting for a rank is useless."""
        processes = self._processes
        if note.state == "failed":
            self._set(f"heard/{processes.rank}", "1")
            raise RankError(f"rank {rank} could not write its part of the video; its own message says why")
        ended = rank in processes.ended()
        if ended or silent > processes.timeout:
            what = "ended" if ended else f"has written no frame for {processes.timeout:g} s"
            raise RankError(
                f"rank {rank} of {processes.world} {what} while decoding. What is finished is kept; with a checkpoint "
                "folder the same command resumes. Where one piece takes longer to decode, raise timeout_s"
            )

    def _fail(self) -> None:
        """Record a failure and wait briefly until the others have read it: they may use the store of this process."""
        processes = self._processes
        try:
            self._write(_Note(self._mine.frames, "failed"))
            end = time.monotonic() + HEARTBEAT_TIMEOUT
            others = [f"{self._name}/heard/{r}" for r in range(processes.world) if r != processes.rank]
            while (
                processes.store is not None and time.monotonic() < end and not processes.store.check(others)
            ):
                time.sleep(0.1)
        except RuntimeError:
            return

    def _tell_all(self) -> None:
        if self._processes.rank == 0:
            self._tell(f"{self.frames} frame{'' if self.frames == 1 else 's'} written")

    def _write(self, note: _Note) -> None:
        self._mine = note
        self._set(str(self._processes.rank), json.dumps([note.frames, note.state]))

    def _set(self, name: str, value: str) -> None:
        if self._processes.store is not None:
            self._processes.store.set(f"{self._name}/{name}", value)

    def _read(self, rank: int) -> _Note:
        store, name = self._processes.store, f"{self._name}/{rank}"
        if store is None or rank == self._processes.rank:
            return self._mine
        return _Note(*json.loads(store.get(name))) if store.check([name]) else _Note()
