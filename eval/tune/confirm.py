"""The fastest settings of a search once more, beside each other, on prompts that the search never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hasten.commands import Job, Processes, wait_for
from hasten.eval.compare.analysis import analyse, batch_timings
from hasten.eval.compare.document import Evaluation, score_arms
from hasten.eval.compare.engine import BASELINE, Arm, flops_of, warm_up
from hasten.eval.compare.making import make_pictures, wait_for_pictures
from hasten.eval.compare.run import arm_to_dict, arms_of_run
from hasten.eval.compare.store import RunStore
from hasten.eval.efficiency.timing import Timings
from hasten.eval.statistics import NO_DISCORDANT, Estimate, non_inferiority
from hasten.eval.tune.budget import FINALISTS
from hasten.eval.tune.search import Result
from hasten.eval.tune.setting import Setting
from hasten.extend import Pipeline

__all__ = ["Finalist", "Standing", "confirm", "finalists_of", "joint_level", "standings", "timings_of"]

_OPEN = 0.5
_APART = 1.03
"""Two finalists of a kind differ in cost by this factor at least; else one of them would say nothing new."""


@dataclass(frozen=True)
class Finalist:
    """A setting to confirm, under the name it has in the report."""

    name: str
    setting: Setting

    @property
    def arm(self) -> Arm:
        """Its row."""
        return replace(self.setting.arm, name=self.name)


@dataclass(frozen=True)
class Standing:
    """How a finalist did on fresh prompts.

    Args:
        finalist: which one.
        held: whether it loses no more than every margin, by intervals that hold for all finalists together.
        outcomes: metric -> ``"held"``, ``"undecided"`` or ``"missed"``.
        changes: metric -> difference to the reference.
        speedup: the reference's time over its own.
        seconds: a picture.
        flops: the reference's over its own.
    """

    finalist: Finalist
    held: bool
    outcomes: Mapping[str, str]
    changes: Mapping[str, Estimate]
    speedup: Estimate
    seconds: float
    flops: float


def finalists_of(results: Sequence[Result]) -> list[Finalist]:
    """At most :data:`~hasten.eval.tune.budget.FINALISTS` settings: the fastest with techniques, the fastest plain one,
    and the runner-up of the faster of the two kinds.

    Those that held in the search come first; where none of a kind did, the fastest that is estimated to lose at most
    half of the margin has its chance.
    """
    ranked = {
        kind: _ranked([r for r in results if Setting.of(r.setting).plain is kind]) for kind in (True, False)
    }
    best = {kind: order[0] for kind, order in ranked.items() if order}
    if not best:
        return []
    faster = min(best, key=lambda kind: best[kind].cost)
    chosen = [*best.values()]
    second = next((r for r in ranked[faster][1:] if r.cost >= _APART * best[faster].cost), None)
    chosen += [second] if second is not None else []
    ordered = sorted(chosen[:FINALISTS], key=lambda result: result.cost)
    return [
        Finalist(_name(Setting.of(result.setting), i), Setting.of(result.setting))
        for i, result in enumerate(ordered)
    ]


def _ranked(results: Sequence[Result]) -> list[Result]:
    held = [result for result in results if result.outcome == "held"]
    open_ones = [result for result in results if result.outcome == "undecided" and result.worst <= _OPEN]
    return sorted(held or open_ones, key=lambda result: result.cost)


def _name(setting: Setting, number: int) -> str:
    what = "plain" if setting.plain else " + ".join(setting.techniques)
    solver = f", {setting.solver}" if setting.solver else ""
    return f"{number + 1}. {what}, {setting.steps} steps{solver}"


def joint_level(level: float, finalists: int) -> float:
    """Coverage of each interval with which those of all finalists hold together at ``level`` (Bonferroni)."""
    return 1 - (1 - level) / max(1, finalists)


def confirm(
    pipe: Pipeline,
    job: Job,
    finalists: Sequence[Finalist],
    folder: Path,
    request: Mapping[str, Any],
    *,
    about: Mapping[str, Any],
    processes: Processes,
    progress: Callable[[str, int, int], None],
    patience: float,
) -> RunStore:
    """Make the pictures of the reference and of every finalist, batch by batch in turn.

    Args:
        pipe: the stock pipeline.
        job: fresh prompts, with the seeds that go with them.
        finalists: what to confirm.
        folder: of the run; an unfinished one is continued.
        request: what identifies it.
        about: kept with it: versions, machine, command.
        processes: this process among several.
        progress: called with what is being done, how much of it is done, and all of it.
        patience: seconds to wait for other processes.

    Raises:
        ConfigError: if the folder holds another confirmation.
        HastenError: from the run or the disk.
    """
    store = RunStore(folder, processes.rank)
    asked = {**request, "prompts": list(job.prompts), "seed": job.seed, "batch_size": job.batch_size}
    asked |= {"call": dict(job.call), "finalists": [finalist.setting.to_dict() for finalist in finalists]}
    store.check_request(asked)
    store.resume()
    reference = Arm(BASELINE, "baseline", int(job.call["num_inference_steps"]))
    arms = [reference, *(finalist.arm for finalist in finalists)]
    if store.read_run() is None:
        if processes.rank == 0:
            warm_up(pipe, arms, job, 1, partial(progress, "warming up"))
            store.begin(
                {
                    "schema": 1,
                    "request": asked,
                    "arms": [arm_to_dict(arm) for arm in arms],
                    "flops": {arm.name: flops_of(pipe, arm, job) for arm in arms},
                    "profiles": {},
                    "knee": None,
                    "about": dict(about),
                }
            )
        else:
            wait_for(lambda: store.run_file.exists(), 1, "the confirmation", patience=patience)
    make_pictures(pipe, store, arms, job, processes, partial(progress, "confirming"))
    if processes.rank == 0:
        wait_for_pictures(store, arms, len(job.prompts), patience)
    return store


def timings_of(store: RunStore) -> Timings:
    """Seconds of the batches of a confirmation, row by row."""
    run = store.read_run()
    assert run is not None
    return batch_timings(arms_of_run(run), store.records())


def standings(store: RunStore, finalists: Sequence[Finalist], evaluation: Evaluation) -> list[Standing]:
    """How each finalist did, in their order.

    Args:
        store: of :func:`confirm`, finished.
        finalists: as given there.
        evaluation: metrics, margins, and the level at which the verdicts hold together.
    """
    run = store.read_run()
    assert run is not None
    arms, prompts = arms_of_run(run), run["request"]["prompts"]
    level = joint_level(evaluation.settings.level, len(finalists))
    settings = replace(evaluation.settings, level=level)
    scored = score_arms(store, [arm.name for arm in arms], prompts, evaluation)
    # A verdict is given to candidates alone, and plain sampling is one here.
    judged = [replace(arm, role="candidate") if arm.role == "control" else arm for arm in arms]
    rows = analyse(judged, prompts, scored.samples, scored.sets, settings)
    timings = timings_of(store)
    first = min(run["request"]["batch_size"], len(prompts))
    higher = {metric.name: metric.higher_is_better for metric in evaluation.metrics}
    found = []
    for finalist in finalists:
        changes, outcomes = {}, {}
        for metric, margin in (settings.margins or {}).items():
            change = rows[finalist.name][metric].change
            assert change is not None
            changes[metric] = change
            same = change.method == NO_DISCORDANT
            verdict = non_inferiority(change, margin, higher_is_better=higher[metric])
            outcomes[metric] = "held" if same else verdict.outcome
        held = all(outcome == "held" for outcome in outcomes.values())
        flops = run["flops"][BASELINE] / run["flops"][finalist.name]
        found.append(
            Standing(
                finalist,
                held,
                outcomes,
                changes,
                timings.ratio(BASELINE, finalist.name),
                timings.median(finalist.name) / first,
                flops,
            )
        )
    return found
