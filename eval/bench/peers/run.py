"""Makes the pictures, all rows batch by batch in turn, until they are done or the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.commands import Config, Job, Processes, generate
from hasten.eval.bench.peers.arms import Row, rows_of
from hasten.eval.bench.peers.peer import Peer
from hasten.eval.compare.engine import BASELINE
from hasten.eval.compare.making import make_pictures
from hasten.eval.compare.run import arm_to_dict
from hasten.eval.compare.store import RunStore
from hasten.extend import ConfigError

__all__ = ["FEWEST_PROMPTS", "Made", "Request", "run_peers"]

FEWEST_PROMPTS = 3
"""Fewer give no interval."""
_DECIDING = 6
"""With fewer pairs no exact test at 95 % can decide."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What the benchmark is asked for. Only an equal one, apart from ``minutes``, is continued.

    Args:
        model: name the pipeline was loaded by.
        job: all prompts, seed, call and batch size; its steps are the reference.
        peers: in order.
        tuned: name -> configuration to run beside the presets.
        minutes: of this call of the command; ``None`` for as long as it takes.
        dtype: number format of the pipeline.
    """

    model: str
    job: Job
    peers: Sequence[Peer]
    tuned: Mapping[str, Config]
    minutes: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        count = len(self.job.prompts)
        if count < FEWEST_PROMPTS:
            raise ConfigError(
                f"{count} prompts give no intervals: give --num-prompts {FEWEST_PROMPTS} at least; with fewer than "
                f"{_DECIDING} no difference can be shown at 95 %, 16 and more are of use"
            )
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ConfigError(f"--minutes {self.minutes}: give the minutes that this call may take, above 0")
        if "num_inference_steps" not in self.job.call:
            raise ConfigError("the number of denoising steps of the reference is not known: give --steps")

    def to_dict(self) -> dict[str, Any]:
        """What an equal request has equal; versions of the packages among it."""
        return {
            "schema": 1,
            "model": self.model,
            "prompts": list(self.job.prompts),
            "seed": self.job.seed,
            "batch_size": self.job.batch_size,
            "call": dict(self.job.call),
            "peers": {peer.name: peer.installed for peer in self.peers},
            "tuned": {name: config.to_dict() for name, config in self.tuned.items()},
            "dtype": self.dtype,
        }


@dataclass(frozen=True)
class Made:
    """What a call of the command leaves.

    Args:
        store: the pictures.
        rows: in order, the baseline first.
        prompts: so many of the first prompts have the pictures of all rows.
        notes: what is left out, and why.
        seconds: that the pictures of one prompt take in all rows, by the first one.
    """

    store: RunStore
    rows: Sequence[Row]
    prompts: int
    notes: Sequence[str]
    seconds: float


def run_peers(
    pipe: Any,
    request: Request,
    folder: Path,
    about: Mapping[str, Any],
    progress: Progress,
    say: Callable[[str], None],
) -> Made:
    """Make every picture that is not there yet and for which there is time.

    Args:
        pipe: the stock pipeline.
        request: what to run.
        folder: of the run; an unfinished one of an equal request is continued.
        about: versions, machine and command.
        progress: called with what is being done, how much of it is done, and all of it.
        say: called with the time it will take, in words.

    Raises:
        ConfigError: the folder holds another run, or the time is too short for two prompts.
        HastenError: from a configuration, the run or the disk.
    """
    began, store = time.monotonic(), RunStore(folder / "pictures")
    store.check_request(request.to_dict())
    store.resume()
    rows, notes = rows_of(pipe, request.job, request.peers, request.tuned)
    run = store.read_run()
    if run is None:
        rows, failed, pace = _tried(pipe, rows, request.job, progress)
        run = _opening(request, rows, [*notes, *failed], pace, about)
        store.begin(run)
    else:
        kept = {arm["name"] for arm in run["arms"]}
        rows = [row for row in rows if row.arm.name in kept]
        _warm(pipe, request.job)
    each = sum(run["about"]["pace"].values())
    count = len(request.job.prompts)
    say(
        f"{len(rows)} settings take {each:.0f} s a prompt together: about {each * count / 60:.0f} minutes for "
        f"{count} prompts"
    )
    limit = None if request.minutes is None else began + 60 * request.minutes
    made = _until(pipe, store, rows, request.job, (limit, each), progress)
    if made < min(FEWEST_PROMPTS, count):
        raise ConfigError(
            f"{request.minutes:g} minutes are too short for {FEWEST_PROMPTS} prompts, which take about "
            f"{each * max(FEWEST_PROMPTS, request.job.batch_size) / 60:.1f}; run the same command again to go on"
        )
    return Made(store, rows, made, run["about"]["notes"], each)


def _tried(
    pipe: Any, rows: Sequence[Row], job: Job, progress: Progress
) -> tuple[list[Row], list[str], dict[str, float]]:
    """The rows that make the first picture, a note on each that does not, and seconds for each."""
    _warm(pipe, job)
    one = replace(job, prompts=job.prompts[:1])
    working, notes, pace = [], [], {}
    for number, row in enumerate(rows):
        progress("trying", number, len(rows))
        start = time.perf_counter()
        try:
            with row.arm.attached(pipe):
                list(generate(pipe, row.arm.job(one)))
        except Exception as error:  # another package's code: whatever it raises, it does not run here
            if row.arm.name == BASELINE:
                raise
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            notes.append(f"{row.arm.name} is left out, it does not run here: {reason}")
        else:
            working.append(row)
            pace[row.arm.name] = time.perf_counter() - start
    return working, notes, pace


def _warm(pipe: Any, job: Job) -> None:
    few: Mapping[str, Any] = {**job.call, "num_inference_steps": 2}
    list(generate(pipe, replace(job, prompts=job.prompts[:1], call=few)))


def _opening(
    request: Request,
    rows: Sequence[Row],
    notes: Sequence[str],
    pace: Mapping[str, float],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "schema": 1,
        "request": request.to_dict(),
        "arms": [arm_to_dict(row.arm) for row in rows],
        "flops": {},
        "profiles": {},
        "about": {**about, "notes": list(notes), "pace": dict(pace)},
    }


def _until(
    pipe: Any,
    store: RunStore,
    rows: Sequence[Row],
    job: Job,
    time_left: tuple[float | None, float],
    progress: Progress,
) -> int:
    """Make batch after batch; how many of the first prompts are complete.

    Args:
        pipe: the stock pipeline.
        store: where pictures go.
        rows: what to make.
        job: all prompts.
        time_left: when to end, and seconds that a prompt takes: a batch that would end later is not begun.
        progress: told after every picture.
    """
    (limit, each), arms, made = time_left, [row.arm for row in rows], 0
    while made < len(job.prompts):
        present = {arm for arm, index in store.records(verify=False) if index == made}
        following = min(made + job.batch_size, len(job.prompts))
        needed = each * (following - made) * (1 - len(present) / len(arms))
        if limit is not None and needed and time.monotonic() + needed > limit:
            break
        part = replace(job, prompts=job.prompts[:following])

        def tell(done: int, _: int) -> None:
            progress("generating", done, len(arms) * len(job.prompts))

        make_pictures(pipe, store, arms, part, Processes(), tell)
        made = following
    return made
