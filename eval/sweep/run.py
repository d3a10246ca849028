"""Makes and judges the rows of a sweep; what is there already is not made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hasten.commands import Job, Processes, own_solver, wait_for
from hasten.eval.compare.analysis import Rows, analyse, batch_timings
from hasten.eval.compare.document import Evaluation, score_arms
from hasten.eval.compare.engine import BASELINE, Arm, warm_up
from hasten.eval.compare.knee import default_steps, working_solvers
from hasten.eval.compare.making import make_pictures, wait_for_pictures
from hasten.eval.compare.run import arm_to_dict, arms_of_run, steps_are_free
from hasten.eval.compare.store import Record, RunStore
from hasten.eval.sweep.arms import Setting, plain_settings, technique_settings, that_run
from hasten.eval.sweep.points import Curve, Point, Quantity, sweep_fields
from hasten.extend import Pipeline
from hasten.files import write_atomically

__all__ = ["SWEEPING", "Sweep", "curves_of", "judge_sweep", "run_sweep", "settings_of"]

SWEEPING = "sweeping"
"""The stage in which the pictures of a sweep are made."""
_ALONE = Processes()


@dataclass(frozen=True)
class Sweep:
    """What is swept.

    Args:
        job: prompts, seed, call and batch size of the comparison; its steps are the reference.
        candidates: configurations whose dials are turned, each with its steps and solver.
        steps: plain steps to run, from above; :func:`hasten.eval.compare.knee.default_steps` unless given.
        request: of the comparison, which a sweep that is continued has to be of.
    """

    job: Job
    candidates: Sequence[Arm]
    request: Mapping[str, Any]
    steps: tuple[int, ...] | None = None

    @property
    def reference(self) -> int:
        """Steps of the baseline."""
        return int(self.job.call["num_inference_steps"])


def settings_of(pipe: Pipeline, sweep: Sweep) -> tuple[list[Setting], list[str]]:
    """The rows of a sweep, the baseline first, and notes on what could not be taken in."""
    own = own_solver(pipe)
    free = steps_are_free(pipe)
    solvers, notes = working_solvers(pipe, sweep.job) if free else ([None], [])
    steps = default_steps(sweep.reference) if sweep.steps is None else sweep.steps
    plain = plain_settings(sweep.reference, steps if free else (), solvers[1:], own)
    turned = [setting for arm in sweep.candidates for setting in technique_settings(arm)]
    working, left_out = that_run(pipe, turned, sweep.job)
    return [*plain, *working], [*notes, *left_out]


def run_sweep(
    pipe: Pipeline,
    sweep: Sweep,
    folder: Path,
    *,
    processes: Processes = _ALONE,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    patience: float = 1800.0,
) -> RunStore:
    """Make every picture of the sweep that is not there yet, all rows batch by batch in turn.

    Args:
        pipe: the stock pipeline.
        sweep: what to make.
        folder: of the sweep; an unfinished one of the same request is continued.
        processes: this process among several; the first one returns when the pictures of all are there.
        progress: called with what is being done, how much of it is done, and all of it.
        patience: seconds to wait for other processes.

    Raises:
        ConfigError: if the folder holds the sweep of another comparison.
        HastenError: from a configuration, the run or the disk.
    """
    store = RunStore(folder, processes.rank)
    store.check_request(sweep.request)
    store.resume()
    if store.read_run() is None:
        if processes.rank == 0:
            settings, notes = settings_of(pipe, sweep)
            store.begin(_opening(sweep, settings, notes))
        else:
            wait_for(lambda: store.run_file.exists(), 1, "the sweep", patience=patience)
            store.check_request(sweep.request)
    run = store.read_run()
    assert run is not None
    arms = arms_of_run(run)
    first_of_curve = {place["curve"]: arm for place, arm in reversed(list(zip(run["about"]["places"], arms)))}

    def warm() -> None:
        warm_up(pipe, [*first_of_curve.values()], sweep.job, 1, partial(progress, "warming up"))

    make_pictures(pipe, store, arms, sweep.job, processes, partial(progress, SWEEPING), warm)
    if processes.rank == 0:
        wait_for_pictures(store, arms, len(sweep.job.prompts), patience)
    return store


def _opening(sweep: Sweep, settings: Sequence[Setting], notes: Sequence[str]) -> dict[str, Any]:
    places = [{"curve": setting.curve, "label": setting.label} for setting in settings]
    return {
        "schema": 1,
        "request": dict(sweep.request),
        "arms": [arm_to_dict(setting.arm) for setting in settings],
        "flops": {},
        "profiles": {},
        "about": {"places": places, "notes": list(notes)},
    }


def judge_sweep(store: RunStore, evaluation: Evaluation) -> dict[str, Any]:
    """Score a finished sweep, write ``sweep.json`` beside its folder, and return its content.

    Raises:
        ConfigError: if a metric can't be computed on it.
    """
    run = store.read_run()
    assert run is not None, "a sweep is judged after it ran"
    arms, prompts = arms_of_run(run), run["request"]["prompts"]
    scored = score_arms(store, [arm.name for arm in arms], prompts, evaluation)
    rows = analyse(arms, prompts, scored.samples, scored.sets, evaluation.settings)
    places, batch = run["about"]["places"], min(run["request"]["batch_size"], len(prompts))
    plain = {place["curve"] for place, arm in zip(places, arms) if arm.config is None}
    curves = curves_of(arms, places, plain, rows, store.records(), batch)
    quantities = [
        Quantity(metric.name, metric.higher_is_better, metric.unit) for metric in evaluation.metrics
    ]
    document = sweep_fields(
        curves,
        quantities,
        schema=1,
        model=run["request"]["model"],
        prompts=len(prompts),
        level=evaluation.settings.level,
        notes=run["about"]["notes"],
    )
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(store.folder.with_suffix(".json"), text.encode())
    return document


def curves_of(
    arms: Sequence[Arm],
    places: Sequence[Mapping[str, str]],
    plain: Collection[str],
    rows: Rows,
    records: Mapping[tuple[str, int], Record],
    batch_size: int,
) -> list[Curve]:
    """Rows as points of curves, in order.

    Args:
        arms: the baseline among them; all with the same batches.
        places: of each arm: the name of its ``curve``, and its ``label``.
        plain: names of the curves of sampling without any technique.
        rows: figures of the arms.
        records: of their pictures.
        batch_size: pictures in the batches that were timed.
    """
    timings = batch_timings(arms, records)
    # Against the baseline's batches, beside which each ran: so a clock that drifts moves all points alike.
    each = timings.median(BASELINE) / batch_size
    found: dict[str, list[Point]] = {}
    for place, arm in zip(places, arms, strict=True):
        ratio = timings.ratio(arm.name, BASELINE).as_dict()
        seconds = {**ratio, **{key: each * ratio[key] for key in ("value", "low", "high")}, "se": None}
        figures = {name: figure.value.as_dict() for name, figure in rows[arm.name].items()}
        facts = {
            "steps": arm.steps,
            "solver": arm.solver,
            "config": None if arm.config is None else arm.config.to_dict(),
            "changes": {
                name: figure.change.as_dict()
                for name, figure in rows[arm.name].items()
                if figure.change is not None
            },
        }
        point = Point(arm.name, place["label"], seconds, figures, facts)
        found.setdefault(place["curve"], []).append(point)
    return [Curve(name, tuple(points), name in plain) for name, points in found.items()]
