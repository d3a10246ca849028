"""A comparison that can be killed at any moment and goes on when it is started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hasten.commands import PATIENCE, Config, Job, Processes, wait_for
from hasten.eval.compare.engine import (
    BASELINE,
    CONTROLS,
    FEWER_STEPS,
    OTHER_SEED,
    REPEAT,
    ROUNDS,
    Arm,
    Turn,
    control_arms,
    equal_time_steps,
    flops_of,
    profile,
    turns,
    warm_up,
)
from hasten.eval.compare.store import Record, RunStore, slug
from hasten.extend import ConfigError, suggestion

__all__ = ["GENERATING", "Progress", "Request", "arms_of_run", "run_comparison"]

Progress = Callable[[str, int, int], None]
GENERATING = "generating"
"""The stage in which the pictures of a comparison are made."""
_WARMING_UP = "warming up"
_ALONE = Processes()


@dataclass(frozen=True)
class Request:
    """What a comparison is asked for. A run is resumed only by an equal request.

    Args:
        model: name the pipeline was loaded by.
        job: prompts, seed, call and batch size.
        candidates: name -> configuration.
        fewer_steps: candidate -> steps of its equal-time control; measured in the warm-up where not given.
        controls: which control rows to add.
        dtype: number format of the pipeline.
    """

    model: str
    job: Job
    candidates: Mapping[str, Config]
    fewer_steps: Mapping[str, int] = field(default_factory=dict)
    controls: Sequence[str] = CONTROLS
    dtype: str = "float32"

    def __post_init__(self) -> None:
        taken = {slug(name): name for name in (BASELINE, REPEAT, OTHER_SEED, FEWER_STEPS)}
        for name in self.candidates:
            if not slug(name) or slug(name) in taken:
                other = taken.get(slug(name), "")
                raise ConfigError(
                    f"a configuration can't be called {name!r}: too close to {other!r}; rename its file"
                )
            taken[slug(name)] = name
        for name in self.fewer_steps:
            if name not in self.candidates:
                raise ConfigError(
                    f"--fewer-steps: no configuration is called {name!r}{suggestion(name, self.candidates)}"
                )
        if not self.candidates:
            raise ConfigError("nothing to compare with the baseline: give --enable NAME or --config FILE")
        if "num_inference_steps" not in self.job.call:
            raise ConfigError("the number of denoising steps is not known: give --steps")
        if len(self.job.prompts) < 2:
            raise ConfigError("a comparison needs at least two prompts; intervals come from how they differ")

    @property
    def steps(self) -> int:
        """Denoising steps of the baseline."""
        return int(self.job.call["num_inference_steps"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "schema": 1,
            "model": self.model,
            "prompts": list(self.job.prompts),
            "seed": self.job.seed,
            "batch_size": self.job.batch_size,
            "call": dict(self.job.call),
            "candidates": {name: config.to_dict() for name, config in self.candidates.items()},
            "fewer_steps": dict(self.fewer_steps),
            "controls": list(self.controls),
            "dtype": self.dtype,
        }

    def measured_arms(self) -> list[Arm]:
        """Baseline and candidates."""
        steps = self.steps
        candidates = [Arm(name, "candidate", steps, config) for name, config in self.candidates.items()]
        return [Arm(BASELINE, "baseline", steps), *candidates]


def run_comparison(
    pipe: Any,
    request: Request,
    folder: Path,
    *,
    processes: Processes = _ALONE,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda *_: None,
    patience: float = PATIENCE,
) -> RunStore:
    """Make every picture that is not there yet.

    Args:
        pipe: the stock pipeline.
        request: what to compare.
        folder: of the run; an unfinished run of an equal request is continued.
        processes: this process among several; process 0 returns when the pictures of all are there.
        about: kept in ``run.json``: versions, machine, command.
        progress: called with what is being done (``"warming up"``, ``"measuring"``, :data:`GENERATING`), how much of
            it this process has done, and all it has to do: calls of the pipeline, and then pictures.
        patience: seconds to wait for other processes without any progress of theirs.

    Raises:
        ConfigError: if the folder holds another run.
        HastenError: from a configuration, the run, or the disk.
    """
    store = RunStore(folder, processes.rank)
    fresh = _open(store, pipe, request, processes, about or {}, progress, patience)
    run = store.read_run()
    assert run is not None
    arms = arms_of_run(run)
    _make(pipe, store, arms, request, processes, progress, warm=fresh and processes.rank == 0)
    if processes.rank == 0:
        total = len(arms) * len(request.job.prompts)
        names, count = {arm.name for arm in arms}, len(request.job.prompts)

        def made() -> int:
            return sum(arm in names and 0 <= i < count for arm, i in store.records(verify=False))

        wait_for(made, total, "pictures", patience=patience)
        store.merge([arm.name for arm in arms])
    return store


def _open(
    store: RunStore,
    pipe: Any,
    request: Request,
    processes: Processes,
    about: Mapping[str, Any],
    progress: Progress,
    patience: float,
) -> bool:
    """Begin the run, or check that it is the one asked for; whether it was begun now."""
    store.check_request(request.to_dict())
    store.resume()
    if store.read_run() is not None:
        return False
    if processes.rank == 0:
        store.begin(_opening(pipe, request, about, progress))
    else:
        wait_for(lambda: store.run_file.exists(), 1, "run.json", patience=patience)
        store.check_request(request.to_dict())
    return True


def _opening(pipe: Any, request: Request, about: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Content of ``run.json``: warms up, which decides the equal-time control, and counts FLOPs."""
    measured = request.measured_arms()
    rounds = 1 if set(request.candidates) <= set(request.fewer_steps) else ROUNDS
    pace = warm_up(pipe, measured, request.job, rounds, partial(progress, _WARMING_UP))
    fewer = {**equal_time_steps(request.steps, pace), **request.fewer_steps}
    controls = [name for name in request.controls if name != FEWER_STEPS or _steps_are_free(pipe)]
    arms = [*measured, *control_arms(request.steps, fewer, controls)]
    own_work = [arm for arm in arms if arm.name not in (REPEAT, OTHER_SEED)]
    looks = iter(range(len(arms) + len(own_work)))

    def look(function: Callable[[Any, Arm, Job], Any], arm: Arm) -> Any:
        progress("measuring", next(looks), len(arms) + len(own_work))
        return function(pipe, arm, request.job)

    return {
        "schema": 1,
        "request": request.to_dict(),
        "arms": [_arm_to_dict(arm) for arm in arms],
        "flops": {arm.name: look(flops_of, arm) for arm in arms},
        "warm_up": pace.as_dict(),
        "profiles": {arm.name: look(profile, arm) for arm in own_work},
        "about": dict(about),
    }


def _steps_are_free(pipe: Any) -> bool:
    """Whether the number of steps can be chosen: a pipeline that generates scale by scale has one for each."""
    from hasten.extend import ScaleSchedule, Target

    return Target.of(pipe).adapter.capability(ScaleSchedule) is None


def _arm_to_dict(arm: Arm) -> dict[str, Any]:
    config = arm.config.to_dict() if arm.config is not None else None
    return {
        "name": arm.name,
        "role": arm.role,
        "steps": arm.steps,
        "config": config,
        "seed_offset": arm.seed_offset,
        "time_of": list(arm.time_of),
    }


def arms_of_run(run: Mapping[str, Any]) -> list[Arm]:
    """The arms that ``run.json`` lists, in order."""
    return [
        Arm(
            **{
                **fields,
                "config": None if fields["config"] is None else Config.of(fields["config"]),
                "time_of": tuple(fields["time_of"]),
            }
        )
        for fields in run["arms"]
    ]


def _make(
    pipe: Any,
    store: RunStore,
    arms: Sequence[Arm],
    request: Request,
    processes: Processes,
    progress: Progress,
    *,
    warm: bool,
) -> None:
    job, done = request.job, set(store.records())
    own = [i for i in range(len(job.prompts)) if processes.owns(i // job.batch_size)]
    total = len(own) * len(arms)
    finished = sum((arm.name, i) in done for arm in arms for i in own)
    tell = partial(progress, GENERATING)

    def missing(arm: Arm, batch: int) -> bool:
        first = batch * job.batch_size
        indices = range(first, min(first + job.batch_size, len(job.prompts)))
        # What the techniques did is kept of the first batch, and measured anew where that was lost.
        lost = batch == 0 and arm.role == "candidate" and not store.has_steps(arm.name)
        return processes.owns(batch) and (lost or any((arm.name, i) not in done for i in indices))

    if finished < total and not warm:
        # A process that comes later, or again, must not time its own start-up.
        warm_up(pipe, request.measured_arms(), job, 1, partial(progress, _WARMING_UP))
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
