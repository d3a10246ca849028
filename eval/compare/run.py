"""A comparison that can be killed at any moment and goes on when it is started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hasten.commands import PATIENCE, Config, Job, Processes, wait_for
from hasten.eval.compare.engine import (
    AT_KNEE,
    BASELINE,
    CONTROLS,
    FEWER_STEPS,
    KNEE,
    OTHER_SEED,
    REPEAT,
    ROUNDS,
    Arm,
    control_arms,
    equal_time_steps,
    flops_of,
    profile,
    warm_up,
)
from hasten.eval.compare.knee import Judge, Knee, Ladder, find_knee
from hasten.eval.compare.making import make_pictures, wait_for_pictures
from hasten.eval.compare.store import RunStore, slug
from hasten.extend import ConfigError, HastenError, Pipeline, suggestion

__all__ = [
    "GENERATING",
    "Progress",
    "Request",
    "arm_to_dict",
    "arms_of_run",
    "problem_of",
    "run_comparison",
    "steps_are_free",
]

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
        ladder: where to look for the knee of the step curve; ``None`` to leave it out.
        solver: that the configurations choose instead of the pipeline's own, for all rows.
    """

    model: str
    job: Job
    candidates: Mapping[str, Config]
    fewer_steps: Mapping[str, int] = field(default_factory=dict)
    controls: Sequence[str] = CONTROLS
    dtype: str = "float32"
    ladder: Ladder | None = None
    solver: str | None = None

    def __post_init__(self) -> None:
        taken = {slug(name): name for name in (BASELINE, REPEAT, OTHER_SEED, FEWER_STEPS, KNEE)}
        for name in self.judged:
            if not slug(name) or slug(name) in taken:
                other = taken.get(slug(name), "")
                raise ConfigError(
                    f"a configuration can't be named {name!r}: too similar to {other!r}; rename its file"
                )
            taken[slug(name)] = name
        for name in self.fewer_steps:
            if name not in self.judged:
                raise ConfigError(
                    f"--fewer-steps: no configuration is called {name!r}{suggestion(name, self.judged)}"
                )
        if not self.candidates:
            raise ConfigError("nothing to compare with the baseline: give --enable NAME or --config FILE")
        if "num_inference_steps" not in self.job.call:
            raise ConfigError("the number of denoising steps is not known: give --steps")
        if len(self.job.prompts) < 2:
            raise ConfigError("a comparison needs at least two prompts to compute intervals")
        if self.ladder is not None:
            _check_ladder(self.ladder, self.steps)

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of all candidates: from the reference and, where a knee is looked for, from there."""
        at_knee = [name + AT_KNEE for name in self.candidates] if self.ladder is not None else []
        return (*self.candidates, *at_knee)

    @property
    def steps(self) -> int:
        """Denoising steps of the baseline."""
        return int(self.job.call["num_inference_steps"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "schema": 1,
            "model": self.model,
            **self.job.to_dict(),
            "candidates": {name: config.to_dict() for name, config in self.candidates.items()},
            "fewer_steps": dict(self.fewer_steps),
            "controls": list(self.controls),
            "dtype": self.dtype,
            "ladder": None if self.ladder is None else asdict(self.ladder),
            **({} if self.solver is None else {"solver": self.solver}),
        }

    def measured_arms(self) -> list[Arm]:
        """Baseline and candidates."""
        steps = self.steps
        candidates = [Arm(name, "candidate", steps, config) for name, config in self.candidates.items()]
        return [Arm(BASELINE, "baseline", steps), *candidates]


def _check_ladder(ladder: Ladder, reference: int) -> None:
    wrong = [steps for steps in ladder.steps if not 1 <= steps < reference]
    if wrong:
        raise ConfigError(
            f"--ladder: {wrong[0]} steps are not between 1 and the {reference} of the reference, exclusive"
        )
    if not ladder.steps:
        raise ConfigError(f"no rung of the ladder is below the reference's {reference} steps: give --ladder")


def run_comparison(
    pipe: Pipeline,
    request: Request,
    folder: Path,
    *,
    processes: Processes = _ALONE,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda *_: None,
    patience: float = PATIENCE,
    judge: Judge | None = None,
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
        judge: scores the rungs of the ladder, for a request that has one.

    Raises:
        ConfigError: if the folder holds another run.
        HastenError: from a configuration, the run, or the disk.
    """
    store = RunStore(folder, processes.rank)
    store.check_request(request.to_dict())
    knee = None
    if request.ladder is not None and store.read_run() is None:
        knee = _knee(pipe, request, folder, judge, processes, progress, patience)
    fresh = _open(store, pipe, request, knee, processes, about or {}, progress, patience)
    run = store.read_run()
    assert run is not None
    arms = arms_of_run(run)

    def warm() -> None:
        # A process that comes later, or again, must not time its own start-up.
        if not fresh or processes.rank > 0:
            warm_up(pipe, arms[: len(request.candidates) + 1], request.job, 1, partial(progress, _WARMING_UP))

    make_pictures(pipe, store, arms, request.job, processes, partial(progress, GENERATING), warm)
    if processes.rank == 0:
        wait_for_pictures(store, arms, len(request.job.prompts), patience)
        store.merge([arm.name for arm in arms])
    return store


def _knee(
    pipe: Pipeline,
    request: Request,
    folder: Path,
    judge: Judge | None,
    processes: Processes,
    progress: Progress,
    patience: float,
) -> Knee | None:
    """The knee of the step curve, ``None`` where the number of steps can't be chosen."""
    assert request.ladder is not None
    assert judge is not None, "a ladder of step counts needs a judge"
    if not steps_are_free(pipe):
        return None
    asked, place = request.to_dict(), folder / "ladder"
    return find_knee(pipe, request.job, request.ladder, asked, place, judge, processes, progress, patience)


def _open(
    store: RunStore,
    pipe: Pipeline,
    request: Request,
    knee: Knee | None,
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
        store.begin(_opening(pipe, request, knee, about, progress))
    else:
        wait_for(lambda: store.run_file.exists(), 1, "run.json", patience=patience)
        store.check_request(request.to_dict())
    return True


def _opening(
    pipe: Pipeline, request: Request, knee: Knee | None, about: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """Content of ``run.json``: warms up, which decides the equal-time controls, and counts FLOPs."""
    at_knee, notes = _arms_at_knee(pipe, request, knee)
    measured = [*request.measured_arms(), *at_knee]
    judged = {arm.name: arm for arm in measured if arm.role == "candidate"}
    rounds = 1 if set(judged) <= set(request.fewer_steps) else ROUNDS
    pace = warm_up(pipe, measured, request.job, rounds, partial(progress, _WARMING_UP))
    paced = equal_time_steps(request.steps, pace)
    if at_knee:
        beside = equal_time_steps(at_knee[0].steps, pace, KNEE)
        paced |= {arm.name: beside[arm.name] for arm in at_knee[1:]}
    fewer = {name: request.fewer_steps.get(name, paced[name]) for name in judged}
    controls = [name for name in request.controls if name != FEWER_STEPS or steps_are_free(pipe)]
    solvers = {name: arm.solver for name, arm in judged.items()}
    arms = [*measured, *control_arms(request.steps, fewer, controls, solvers)]
    own_work = [arm for arm in arms if arm.name not in (REPEAT, OTHER_SEED)]
    looks = iter(range(len(arms) + len(own_work)))

    def look(function: Callable[[Any, Arm, Job], Any], arm: Arm) -> Any:
        progress("measuring", next(looks), len(arms) + len(own_work))
        return function(pipe, arm, request.job)

    return {
        "schema": 1,
        "request": request.to_dict(),
        "arms": [arm_to_dict(arm) for arm in arms],
        "flops": {arm.name: look(flops_of, arm) for arm in arms},
        "warm_up": pace.as_dict(),
        "profiles": {arm.name: look(profile, arm) for arm in own_work},
        "knee": None if knee is None else {**knee.to_dict(), "notes": [*knee.notes, *notes]},
        "about": dict(about),
    }


def _arms_at_knee(pipe: Pipeline, request: Request, knee: Knee | None) -> tuple[list[Arm], list[str]]:
    """The knee, and every candidate from there; notes on those that can't run with its steps and solver."""
    if knee is None or not knee.below:
        return [], []
    arms = [Arm(KNEE, "control", knee.steps, solver=knee.solver)]
    notes = []
    for name, config in request.candidates.items():
        arm = Arm(name + AT_KNEE, "candidate", knee.steps, config, solver=knee.solver)
        problem = problem_of(pipe, arm, request.job)
        if problem:
            notes.append(f"{name} does not run at the knee: {problem}")
        else:
            arms.append(arm)
    return arms, notes


def problem_of(pipe: Pipeline, arm: Arm, job: Job) -> str:
    """Why an arm can't run; empty if it can."""
    import hasten
    from hasten.commands import solving_with

    assert arm.config is not None
    try:
        with solving_with(pipe, arm.solver):
            plan = hasten.plan(pipe, arm.config, **arm.job(job).call)
    except HastenError as error:
        return str(error)
    return "; ".join(finding.message for finding in plan.findings if finding.severity == "error")


def steps_are_free(pipe: Pipeline) -> bool:
    """Whether the number of steps can be chosen: a pipeline that generates scale by scale has one for each."""
    from hasten.extend import ScaleSchedule, Target

    return Target.of(pipe).adapter.capability(ScaleSchedule) is None


def arm_to_dict(arm: Arm) -> dict[str, Any]:
    """JSON-ready fields, which :func:`arms_of_run` takes back."""
    config = arm.config.to_dict() if arm.config is not None else None
    return {
        "name": arm.name,
        "role": arm.role,
        "steps": arm.steps,
        "config": config,
        "seed_offset": arm.seed_offset,
        "time_of": list(arm.time_of),
        "solver": arm.solver,
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
