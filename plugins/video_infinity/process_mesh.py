"""The processes of one run: checks that they agree, and errors that name a lost process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from hasten.commands import owned
from hasten.extend import ConflictError, HastenError, RankError, gather
from hasten.plugins.video_infinity.heartbeat import HEARTBEAT_TIMEOUT, Heartbeat
from hasten.plugins.video_infinity.transport import Distributed, SingleProcess, Transport

__all__ = ["ProcessMesh", "first_difference"]

ResultT = TypeVar("ResultT")


@dataclass
class ProcessMesh:
    """Processes that make one video, arranged in a grid of (guidance branches, groups of clips).

    With data parallelism, several such grids work next to each other and do not know of each other.

    Args:
        rank: rank of this process in the grid, from 0.
        world: number of processes in the grid.
        timeout: seconds after which a silent process counts as lost.
        store: key-value store that all processes share; ``None`` for a single process.
        group: these processes; ``None`` for a single process.
        cfg_ranks: number of processes that compute the same clips, one for each branch of guidance.
        clip_group: the processes with the same branch.
        cfg_group: the processes with the same clips.
        heartbeat: tells which processes are alive.
    """

    rank: int = 0
    world: int = 1
    timeout: float = 0.0
    store: dist.Store | None = None
    cfg_ranks: int = 1
    group: dist.ProcessGroup | None = field(default=None, repr=False)
    clip_group: dist.ProcessGroup | None = field(default=None, repr=False)
    cfg_group: dist.ProcessGroup | None = field(default=None, repr=False)
    heartbeat: Heartbeat | None = field(default=None, repr=False)
    where: str = "at the start"
    """What the run is doing, for error messages."""

    @property
    def clip_rank(self) -> int:
        """Index of the group of clips that this process computes."""
        return self.rank % (self.world // self.cfg_ranks)

    @property
    def clip_ranks(self) -> int:
        """Number of groups of clips."""
        return self.world // self.cfg_ranks

    @property
    def branch(self) -> int:
        """Index of the guidance branch that this process computes."""
        return self.rank // self.clip_ranks

    def transport(self) -> Transport:
        """Messages to the processes with other clips."""
        if self.clip_group is None or self.clip_ranks == 1:
            return SingleProcess()
        return Distributed(self.clip_group, self.explain)

    def gather(self, value: ResultT) -> list[ResultT]:
        """One picklable value from every process, in order of ranks.

        Raises:
            RankError: a process did not answer.
        """
        if self.world == 1:
            return [value]
        with self.explained():
            return gather(value, self.group)

    def all_or_none(self, attempt: Callable[[], ResultT], failure: type[HastenError]) -> ResultT:
        """The result of ``attempt`` on this process, if it succeeds on all processes.

        Raises:
            HastenError: of type ``failure``: ``attempt`` raised a ``HastenError`` on any process. All processes raise
                the same message.
        """
        refused = None
        try:
            result = attempt()
        except HastenError as error:
            refused = str(error)
        reasons = [reason for reason in self.gather(refused) if reason is not None]
        if reasons:
            raise failure(reasons[0])
        return result

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check that all processes have the same ``facts``.

        Raises:
            RankError: they differ; all processes raise the same message.
        """
        everyone = self.gather(dict(facts))
        for rank, other in enumerate(everyone):
            found = first_difference(everyone[0], other)
            if found is not None:
                name, first, value = found
                raise RankError(
                    f"the processes do not agree on {name}: rank 0 has {_shown(first)}, rank {rank} has "
                    f"{_shown(value)}. Start all of them with the same command, code and files."
                )

    @contextmanager
    def hold(self, output: str | Path) -> Iterator[None]:
        """Lock an output against other runs, on all processes or on none.

        Args:
            output: a folder that exists, or a file.

        Raises:
            ConflictError: another run has locked it on any process; all processes raise the same message.
        """
        with ExitStack() as stack:
            self.all_or_none(lambda: stack.enter_context(owned(output, self.rank)), ConflictError)
            yield

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns errors of ``torch.distributed`` into a :class:`RankError` that names the lost ranks."""
        try:
            yield
        except RuntimeError as error:
            raise self.explain(error) from error

    def explain(self, error: BaseException) -> RankError:
        """The error for a message that could not be sent or received; it names the lost ranks."""
        lost = self._lost()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if lost:
            ranks = f"rank {lost[0]}" if len(lost) == 1 else f"ranks {', '.join(map(str, lost))}"
            return RankError(
                f"{ranks} of {self.world} failed, was killed or hung for {self.timeout:g} s {self.where} "
                f"(noticed by rank {self.rank}: {reason}). What is finished is kept; with a checkpoint "
                "folder the same command resumes."
            )
        return RankError(
            f"rank {self.rank} of {self.world} lost its peers {self.where}: {reason}. With a checkpoint "
            "folder the same command resumes."
        )

    def ended(self) -> set[int]:
        """Ranks whose heartbeat has stopped."""
        return set() if self.heartbeat is None else self.heartbeat.ended()

    def _lost(self) -> list[int]:
        """Ranks that have ended; if there are none, those that hang and so have not noticed the failure."""
        if self.store is None:
            return []
        try:
            self.store.set(f"noticed/{self.rank}", "1")
            end = time.monotonic() + HEARTBEAT_TIMEOUT + 1.0
            while True:
                quiet = [r for r in range(self.world) if not self.store.check([f"noticed/{r}"])]
                ended = [rank for rank in quiet if rank in self.ended()]
                if (
                    ended == quiet or time.monotonic() > end
                ):  # other processes may still need the store of this one
                    return ended or quiet
                time.sleep(0.1)
        except RuntimeError:  # the process that hosted the store is gone
            return sorted(self.ended())


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first entry that differs between two nested mappings."""
    for name in (*one, *(key for key in other if key not in one)):
        first, second = one.get(name), other.get(name)
        if first == second:
            continue
        if isinstance(first, dict) and isinstance(second, dict):
            inner = first_difference(first, second)
            if inner is not None:
                return f"{name}.{inner[0]}", inner[1], inner[2]
        return name, first, second
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
