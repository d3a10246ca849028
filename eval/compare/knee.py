"""The knee of the step curve: the fewest plain steps that lose no more than a margin against the reference's steps.

A ladder of steps is tested from above and left at the first miss, so that no correction for several tests is needed: a
rung is tested only after every higher one held. The pipeline's own solver goes first; another one has to get by with
fewer steps than the best so far. What errs by trying several solvers errs towards fewer steps, which makes the knee
harder to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hasten.commands import Job, Processes, generate, other_solvers, wait_for
from hasten.eval.compare.engine import BASELINE, Arm
from hasten.eval.compare.making import make_pictures, wait_for_pictures
from hasten.eval.compare.store import RunStore
from hasten.extend import HastenError, Pipeline
from hasten.files import read_sealed, seal, write_atomically

__all__ = ["Judge", "Knee", "Ladder", "Rung", "default_steps", "find_knee", "next_rung", "working_solvers"]

Judge = Callable[[RunStore, str, Sequence[str]], Mapping[str, Mapping[str, Any]]]
"""Of a store with the baseline, the name of an arm, and the prompts: metric -> ``change``, ``outcome``, ``held`` and
``needed`` (see :func:`hasten.eval.compare.document.rung_judge`).
"""
SEARCHING = "finding the knee"
"""The stage in which the ladder's pictures are made."""
_FEWEST = 4
"""Steps of the lowest default rung."""
_PROBE_STEPS = 2


def default_steps(reference: int) -> tuple[int, ...]:
    """Rungs below ``reference`` steps, each with 1 / sqrt(2) of the one above: 20, 14, 10, 7, 5, 4 below 28."""
    rungs = (round(reference * 2 ** (-number / 2)) for number in range(1, 64))
    return tuple(dict.fromkeys(steps for steps in rungs if _FEWEST <= steps < reference))


@dataclass(frozen=True)
class Ladder:
    """Where the knee is looked for, and what decides.

    Args:
        steps: rungs, from above.
        margins: metric -> the largest loss against the reference that a rung may have.
        prompts: so many of the first prompts are used.
        level: coverage of the intervals.
        judged_by: metric -> its fingerprint; figures of other networks decide otherwise.
    """

    steps: tuple[int, ...]
    margins: Mapping[str, float]
    prompts: int
    level: float = 0.95
    judged_by: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Rung:
    """One tested rung: steps, solver (``None`` is the pipeline's own), whether it held, and what each metric said."""

    steps: int
    solver: str | None
    held: bool
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Knee:
    """What was found.

    Args:
        steps: the fewest that held, or those of the reference.
        solver: the one that got by with them; ``None`` is the pipeline's own.
        reference: steps of the baseline.
        rungs: what was tested, in order.
        margins: as of the ladder.
        prompts: how many were used.
        notes: what could not be tried, in words.
    """

    steps: int
    solver: str | None
    reference: int
    rungs: tuple[Rung, ...]
    margins: Mapping[str, float]
    prompts: int
    notes: tuple[str, ...] = ()

    @property
    def below(self) -> bool:
        """Whether fewer steps than the reference's held."""
        return self.steps < self.reference

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Knee:
        """The inverse of :meth:`to_dict`."""
        found: Knee = TypeAdapter(cls).validate_python(fields)
        return found


def next_rung(
    steps: Sequence[int], solvers: Sequence[str | None], decided: Sequence[Rung]
) -> tuple[int, str | None] | None:
    """Steps and solver to test next; ``None`` at the end.

    Args:
        steps: rungs, from above.
        solvers: in the order in which they have their turn.
        decided: what was tested so far.
    """
    fewest = min((rung.steps for rung in decided if rung.held), default=max(steps, default=0) + 1)
    below = [count for count in steps if count < fewest]
    for solver in solvers:
        missed = any(rung.solver == solver and not rung.held for rung in decided)
        if below and not missed:
            return below[0], solver
    return None


def find_knee(
    pipe: Pipeline,
    job: Job,
    ladder: Ladder,
    request: Mapping[str, Any],
    folder: Path,
    judge: Judge,
    processes: Processes,
    progress: Callable[[str, int, int], None],
    patience: float,
) -> Knee:
    """Make and judge the rungs that are not decided yet.

    Args:
        pipe: the stock pipeline.
        job: the comparison's; its steps are the reference.
        ladder: where to look.
        request: of the comparison, which a search that is continued has to be of.
        folder: of the search; its pictures and decisions are kept there.
        judge: scores a rung.
        processes: this process among several; the first one judges.
        progress: as of :func:`hasten.eval.compare.run.run_comparison`.
        patience: seconds to wait for other processes.

    Raises:
        ConfigError: if the folder holds the search of another comparison.
        HastenError: from the run or the disk.
    """
    store = RunStore(folder, processes.rank)
    job = replace(job, prompts=job.prompts[: ladder.prompts])
    solvers, notes = _begin(store, pipe, job, request, processes, patience)
    reference = int(job.call["num_inference_steps"])
    baseline = Arm(BASELINE, "baseline", reference)
    decided = _decided(store)
    while (following := next_rung(ladder.steps, solvers, decided)) is not None:
        steps, solver = following
        arm = Arm(f"{steps} steps{f', {solver}' if solver else ''}", "control", steps, solver=solver)
        tell = partial(progress, f"{SEARCHING}: {arm.name}")
        make_pictures(pipe, store, [baseline, arm], job, processes, tell)
        if processes.rank == 0:
            wait_for_pictures(store, [baseline, arm], len(job.prompts), patience)
            _decide(store, decided, arm, judge(store, arm.name, job.prompts))
        else:
            wait_for(lambda: len(_decided(store)), len(decided) + 1, "the knee", patience=patience)
        decided = _decided(store)
    best = min((rung for rung in decided if rung.held), key=lambda rung: rung.steps, default=None)
    steps, solver = (best.steps, best.solver) if best is not None else (reference, None)
    return Knee(steps, solver, reference, tuple(decided), ladder.margins, len(job.prompts), tuple(notes))


def _begin(
    store: RunStore,
    pipe: Pipeline,
    job: Job,
    request: Mapping[str, Any],
    processes: Processes,
    patience: float,
) -> tuple[list[str | None], list[str]]:
    """The solvers to try, and notes on those that can't be."""
    store.check_request(request)
    store.resume()
    if store.read_run() is None:
        if processes.rank == 0:
            solvers, notes = working_solvers(pipe, job)
            found = {"solvers": solvers, "notes": notes}
            store.begin({"request": request, "arms": [], "flops": {}, "profiles": {}, "about": found})
        else:
            wait_for(lambda: store.run_file.exists(), 1, "the knee", patience=patience)
            store.check_request(request)
    run = store.read_run()
    assert run is not None
    return run["about"]["solvers"], run["about"]["notes"]


def working_solvers(pipe: Pipeline, job: Job) -> tuple[list[str | None], list[str]]:
    """Solvers with which the pipeline makes a picture, its own (``None``) first; a note on each other one."""
    solvers: list[str | None] = [None]
    notes = []
    probe = replace(job, prompts=job.prompts[:1])
    for name in other_solvers(pipe):
        arm = Arm(name, "control", _PROBE_STEPS, solver=name)
        try:
            with arm.attached(pipe):
                list(generate(pipe, arm.job(probe)))
        except (HastenError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            notes.append(f"{type(pipe).__name__} does not run with the solver {name}: {error}")
        else:
            solvers.append(name)
    return solvers, notes


_RUNGS = TypeAdapter(list[Rung])


def _decide(store: RunStore, before: Sequence[Rung], arm: Arm, figures: Mapping[str, Any]) -> None:
    rung = Rung(arm.steps, arm.solver, all(figure["held"] for figure in figures.values()), figures)
    rungs = [asdict(decided) for decided in (*before, rung)]
    write_atomically(store.folder / "rungs.json", seal({"rungs": rungs}))


def _decided(store: RunStore) -> list[Rung]:
    remedy = f"remove {store.folder}"
    found = read_sealed(store.folder / "rungs.json", remedy)
    return _RUNGS.validate_python(found["rungs"]) if found is not None else []
