"""How far every process is with decoding. It may take longer than the group's limit for messages, so notes in the store
take the place of messages."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from hasten.extend import RankError
from hasten.plugins.video_infinity.processes import Processes
from hasten.plugins.video_infinity.pulse import PATIENCE

__all__ = ["Progress"]

_numbers = itertools.count()
"""Every process makes its videos in the same order, so that one's number names it."""


@dataclass(frozen=True)
class _Note:
    frames: int = 0
    state: Literal["writing", "done", "failed"] = "writing"


class Progress:
    """Notes of all processes about one video. A context manager that notes a failure.

    Args:
        processes: the processes.
        tell: is told how many frames there are.
    """

    def __init__(self, processes: Processes, tell: Callable[[str], None]) -> None:
        self._processes, self._tell = processes, tell
        self._name = f"film/{next(_numbers)}"
        self._mine = _Note()

    def __enter__(self) -> Progress:
        self._write(self._mine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, RankError):  # which is about another process
            self._fail()

    def add(self, frames: int) -> None:
        """Note that so many more frames are written."""
        self._write(_Note(self._mine.frames + frames))
        self._tell_all()

    def finish(self) -> None:
        """Note that this process's part is complete."""
        self._write(_Note(self._mine.frames, "done"))

    @property
    def frames(self) -> int:
        """Frames that all processes have written."""
        return sum(self._read(rank).frames for rank in range(self._processes.world))

    def wait(self, ranks: Iterable[int]) -> int:
        """Frames written by ``ranks``, once all of them are done.

        Raises:
            RankError: one failed, has ended, or has written nothing for the time limit.
        """
        processes, waited = self._processes, list(ranks)
        seen = {rank: (_Note(), time.monotonic()) for rank in waited}
        while True:
            try:
                notes = {rank: self._read(rank) for rank in waited}
            except RuntimeError as error:  # the store went down with the process that kept it
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
        """Raise where there is no use in waiting for a rank."""
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
        """Note a failure, and stay for a moment until the others know: they may need this process's store."""
        processes = self._processes
        try:
            self._write(_Note(self._mine.frames, "failed"))
            end = time.monotonic() + PATIENCE
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
