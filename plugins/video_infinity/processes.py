"""The processes of one run: making sure that they agree, and saying which one is at fault when one is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hasten.commands import owned
from hasten.extend import ConflictError, HastenError, RankError
from hasten.plugins.video_infinity.pulse import PATIENCE, Pulse
from hasten.plugins.video_infinity.transport import Alone, Distributed, Transport

__all__ = ["Processes", "first_difference"]


@dataclass
class Processes:
    """A group of processes, laid out as (branches of guidance, clips).

    Args:
        rank: this process, from 0.
        world: how many there are.
        timeout: seconds after which a silent one counts as lost.
        store: where they leave notes for each other; ``None`` for a single process.
        cfg_ranks: how many ranks share a run of clips, one for each branch of guidance.
    """

    rank: int = 0
    world: int = 1
    timeout: float = 0.0
    store: dist.Store | None = None
    cfg_ranks: int = 1
    clip_group: dist.ProcessGroup | None = field(default=None, repr=False)
    cfg_group: dist.ProcessGroup | None = field(default=None, repr=False)
    pulse: Pulse | None = field(default=None, repr=False)
    where: str = "at the start"
    """What the run is doing, for messages."""

    @property
    def clip_rank(self) -> int:
        """Which run of clips this process computes."""
        return self.rank % (self.world // self.cfg_ranks)

    @property
    def clip_ranks(self) -> int:
        """How many runs of clips there are."""
        return self.world // self.cfg_ranks

    @property
    def branch(self) -> int:
        """Which branch of guidance this process computes."""
        return self.rank // self.clip_ranks

    def transport(self) -> Transport:
        """The way to the processes with other clips."""
        if self.clip_group is None or self.clip_ranks == 1:
            return Alone()
        return Distributed(self.clip_group, self.explain)

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of every process, in order of ranks.

        Raises:
            RankError: one of them did not answer.
        """
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise self.explain(error) from error
        return values

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compare what every process is about to compute.

        Raises:
            RankError: they differ; the same message on all of them.
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
        """Hold an output against other runs, on all processes or on none.

        Args:
            output: a folder that exists, or a file.

        Raises:
            ConflictError: another run holds it, on any process; the same message on all of them.
        """
        with ExitStack() as stack:
            refused = None
            try:
                stack.enter_context(owned(output, self.rank))
            except HastenError as error:
                refused = str(error)
            everyone = [reason for reason in self.gather(refused) if reason is not None]
            if everyone:
                raise ConflictError(everyone[0])
            yield

    def explain(self, error: BaseException) -> RankError:
        """The error to raise where a message could not be sent or received, naming the ranks that are gone."""
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
        """Ranks that give no sign of life any more."""
        return set() if self.pulse is None else self.pulse.ended()

    def _lost(self) -> list[int]:
        """Ranks that have ended; without one, those that have not noticed the failure themselves, being stuck."""
        if self.store is None:
            return []
        try:
            self.store.set(f"noticed/{self.rank}", "1")
            end = time.monotonic() + PATIENCE + 1.0
            while True:
                quiet = [r for r in range(self.world) if not self.store.check([f"noticed/{r}"])]
                ended = [rank for rank in quiet if rank in self.ended()]
                if ended == quiet or time.monotonic() > end:  # the living may need this process's store
                    return ended or quiet
                time.sleep(0.1)
        except (
            RuntimeError
        ):  # the store went down with the process that kept it, and what was seen before is left
            return sorted(self.ended())


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first entry in which two nested mappings differ."""
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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
