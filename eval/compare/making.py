"""Makes the pictures of some arms that are not there yet, and keeps each with its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hasten.commands import Job, Processes, wait_for
from hasten.eval.compare.engine import Arm, Turn, turns
from hasten.eval.compare.store import Record, RunStore
from hasten.extend import Pipeline

__all__ = ["make_pictures", "wait_for_pictures"]


def make_pictures(
    pipe: Pipeline,
    store: RunStore,
    arms: Sequence[Arm],
    job: Job,
    processes: Processes,
    tell: Callable[[int, int], None],
    before: Callable[[], None] = lambda: None,
) -> None:
    """Make this process's share, all arms batch by batch in turn.

    Args:
        pipe: the stock pipeline; not needed where nothing is missing.
        store: where they go.
        arms: what to make.
        job: prompts, seed, call and batch size.
        processes: this process among several.
        tell: called with the number of pictures done, and of all.
        before: called first if anything is missing.
    """
    done = set(store.records())
    own = [i for i in range(len(job.prompts)) if processes.owns(i // job.batch_size)]
    total = len(own) * len(arms)
    finished = sum((arm.name, i) in done for arm in arms for i in own)

    def missing(arm: Arm, batch: int) -> bool:
        first = batch * job.batch_size
        indices = range(first, min(first + job.batch_size, len(job.prompts)))
        # What the techniques did is kept of the first batch, and measured anew where that was lost.
        lost = batch == 0 and arm.role == "candidate" and not store.has_steps(arm.name)
        return processes.owns(batch) and (lost or any((arm.name, i) not in done for i in indices))

    if finished < total:
        before()
    tell(finished, total)
    for turn in turns(pipe, arms, job, missing):
        finished += _keep(store, turn, done)
        tell(finished, total)


def _keep(store: RunStore, turn: Turn, done: set[tuple[str, int]]) -> int:
    """Write what a batch made, except what was there before; how many pictures that was."""
    name, records = turn.arm.name, []
    if turn.report is not None and turn.batch == 0:
        store.save_steps(name, turn.report.to_dict())
    for sample in turn.samples:
        if (name, sample.index) in done:
            continue
        file, digest = store.save_frames(name, sample.index, sample.frames)
        seconds = round(turn.seconds, 6)
        records.append(Record(name, sample.index, sample.seed, file, digest, turn.batch, seconds, store.rank))
    store.add(records)
    done.update((name, record.index) for record in records)
    return len(records)


def wait_for_pictures(store: RunStore, arms: Sequence[Arm], count: int, patience: float) -> None:
    """Until every process has made its share of ``count`` pictures of each arm.

    Raises:
        HastenError: if the others make no progress for ``patience`` seconds.
    """
    names = {arm.name for arm in arms}

    def made() -> int:
        return sum(arm in names and 0 <= i < count for arm, i in store.records(verify=False))

    wait_for(made, len(arms) * count, "pictures", patience=patience)
