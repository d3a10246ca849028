"""``report.json``: everything that was measured. Equal bit for bit on a rerun, apart from ``times``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hasten.eval.compare.analysis import Figure, Rows, Settings, analyse, batch_timings, check_margins, sanity
from hasten.eval.compare.contest import BEATS, Contest, contests
from hasten.eval.compare.engine import BASELINE, KNEE, Arm
from hasten.eval.compare.gates import BeatsFewerSteps, Gate
from hasten.eval.compare.knee import Judge, Ladder
from hasten.eval.compare.run import arms_of_run
from hasten.eval.compare.scores import SampleScores, SetScores, score_arm
from hasten.eval.compare.store import RunStore
from hasten.eval.metric import Metric, SetMetric
from hasten.eval.scoring.kept import KeptFeatures, KeptScores
from hasten.eval.scoring.reference import Embedded, Reference, embed_references, few_samples
from hasten.eval.statistics import NO_DISCORDANT, pairs_needed
from hasten.files import write_atomically

__all__ = ["Evaluation", "Scored", "evaluate_run", "missed_gates", "rung_judge", "score_arms"]


@dataclass(frozen=True)
class Evaluation:
    """How a finished run is judged.

    Args:
        metrics: what to measure.
        reference: real pictures or statistics for metrics of sets.
        settings: intervals and margins.
        gates: conditions on the candidates.

    Raises:
        ConfigError: if a margin can't be judged, or the reference does not suit a metric.
        CheckpointError: if statistics are damaged.
    """

    metrics: Sequence[Metric]
    reference: Reference | None = None
    settings: Settings = field(default_factory=Settings)
    gates: Sequence[Gate | BeatsFewerSteps] = ()

    def __post_init__(self) -> None:
        check_margins(self.settings.margins or {}, self.metrics)
        if self.reference is not None:
            self.reference.check(self.metrics)


@dataclass(frozen=True)
class Scored:
    """What the metrics say of the pictures of some arms."""

    samples: Sequence[SampleScores]
    sets: Sequence[SetScores]
    references: Embedded


def score_arms(
    store: RunStore, arms: Sequence[str], prompts: Sequence[str], evaluation: Evaluation
) -> Scored:
    """Score the pictures of ``arms``, the baseline among them, by every metric.

    Raises:
        ConfigError: if a metric can't be computed on them.
    """
    kept = {arm: score_arm(store, arm, prompts, evaluation.metrics) for arm in arms}
    side = store.open_image(BASELINE, 0).height
    references = embed_references(evaluation.metrics, evaluation.reference, prompts, side)
    samples, sets = [], []
    for metric in evaluation.metrics:
        of = {arm: found[metric.name] for arm, found in kept.items() if metric.name in found}
        scores = {arm: one for arm, one in of.items() if isinstance(one, KeptScores)}
        if scores:
            samples.append(SampleScores.of(scores, len(prompts)))
        features = {arm: one.kept for arm, one in of.items() if isinstance(one, KeptFeatures)}
        if isinstance(metric, SetMetric):
            sets.append(SetScores(metric, features, references.of[metric.name]))
    return Scored(samples, sets, references)


def rung_judge(evaluation: Evaluation, ladder: Ladder) -> Judge:
    """Scores a rung of the ladder by the metrics that have a margin there.

    Returns:
        A function of the store, the rung's name and the prompts. It returns for each metric the ``change`` from the
        reference, the ``outcome`` of the test of non-inferiority, whether the rung ``held``, and, where the outcome is
        undecided, about how many prompts are ``needed``. A rung in which no prompt differs has held, however few
        prompts there are: to stop there would leave the knee where it is easily beaten.
    """
    margins = ladder.margins
    own = replace(
        evaluation,
        metrics=[metric for metric in evaluation.metrics if metric.name in margins],
        settings=replace(evaluation.settings, margins=margins, level=ladder.level),
        gates=(),
    )

    def judge(store: RunStore, name: str, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
        scored = score_arms(store, [BASELINE, name], prompts, own)
        arms = [Arm(BASELINE, "baseline", 1), Arm(name, "candidate", 1)]
        rows = analyse(arms, prompts, scored.samples, scored.sets, own.settings)
        return {metric: _rung_figure(figure) for metric, figure in rows[name].items()}

    return judge


def _rung_figure(figure: Figure) -> dict[str, Any]:
    change, verdict = figure.change, figure.verdict
    assert change is not None
    assert verdict is not None
    held = verdict.outcome == "held" or change.method == NO_DISCORDANT
    needed = None
    if not held and verdict.outcome == "undecided" and verdict.margin > 0 and change.se > 0:
        needed = pairs_needed(verdict.margin, change.se * change.clusters**0.5, level=change.level)
    return {"change": change.as_dict(), "outcome": verdict.outcome, "held": held, "needed": needed}


def evaluate_run(store: RunStore, evaluation: Evaluation) -> dict[str, Any]:
    """Score the pictures of a finished run, write ``report.json``, and return its content.

    Raises:
        ConfigError: if a metric can't be computed on this run.
    """
    run = store.read_run()
    assert run is not None, "a comparison is evaluated after it ran"
    arms, prompts = arms_of_run(run), run["request"]["prompts"]
    scored = score_arms(store, [arm.name for arm in arms], prompts, evaluation)
    rows = analyse(arms, prompts, scored.samples, scored.sets, evaluation.settings)
    held = contests(arms, prompts, scored.samples, scored.sets, evaluation.settings)
    document = _document(store, run, arms, rows, held, scored.samples, evaluation)
    document |= _reference_part(scored.references, evaluation)
    document["warnings"] += scored.references.warnings
    for scores in scored.sets:
        document["warnings"] += few_samples(scores.metric, scores.features[BASELINE])
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(store.folder / "report.json", text.encode())
    return document


def _document(
    store: RunStore,
    run: Mapping[str, Any],
    arms: Sequence[Arm],
    rows: Rows,
    held: Mapping[str, Contest],
    samples: Sequence[SampleScores],
    evaluation: Evaluation,
) -> dict[str, Any]:
    records = store.records()
    digests = {key: record.sha256 for key, record in records.items()}
    figures = {arm: {name: figure.to_dict() for name, figure in row.items()} for arm, row in rows.items()}
    flops = run["flops"]
    efficiency = {arm.name: {"flops_ratio": _plain(flops[BASELINE] / flops[arm.name])} for arm in arms}
    times = _times(store, run, arms, records, held)
    won = {arm: {BEATS: contest.outcome} for arm, contest in held.items()}
    outcomes = _gate_outcomes(evaluation.gates, arms, figures, efficiency, times["arms"], won)
    times["gates"] = [outcome for gate, outcome in outcomes if gate.timed]
    request = run["request"]
    return {
        "schema": 1,
        **{key: request[key] for key in ("model", "seed", "call", "batch_size", "prompts")},
        "arms": [
            {
                **fields,
                "solver": arm.solver,
                "sameness": arm.sameness,
                "flops": flops[arm.name],
                **efficiency[arm.name],
            }
            for fields, arm in zip(run["arms"], arms, strict=True)
        ],
        "settings": {
            "level": evaluation.settings.level,
            "seed": evaluation.settings.seed,
            "margins": dict(evaluation.settings.margins or {}),
        },
        "metrics": {metric.name: _describe(metric) for metric in evaluation.metrics},
        "figures": figures,
        "knee": run.get("knee"),
        "contests": {arm: contest.to_dict() for arm, contest in held.items()},
        "scores": {s.metric.name: {arm: v.tolist() for arm, v in s.values.items()} for s in samples},
        "pictures": {
            arm.name: [digests[arm.name, i] for i in range(len(request["prompts"]))] for arm in arms
        },
        "steps": {arm.name: _steps(store, arm.name)[0] for arm in arms if arm.role == "candidate"},
        "warnings": sanity(arms, request["prompts"], digests),
        "gates": [outcome for gate, outcome in outcomes if not gate.timed],
        "about": {key: value for key, value in run["about"].items() if key not in ("command", "created")},
        "times": times,
    }


def _reference_part(references: Embedded, evaluation: Evaluation) -> dict[str, Any]:
    if evaluation.reference is None:
        return {"reference": None}
    return {"reference": {"path": str(evaluation.reference.path), **references.as_dict()}}


def _plain(value: float) -> dict[str, float]:
    return {"value": value}


def _describe(metric: Metric) -> dict[str, Any]:
    return {
        "fingerprint": metric.fingerprint().as_dict(),
        "higher_is_better": metric.higher_is_better,
        "unit": metric.unit,
        "kind": "set" if isinstance(metric, SetMetric) else "picture",
        "against_baseline": "baseline" in metric.needs,
        "miniature": not metric.published,
    }


def _times(
    store: RunStore,
    run: Mapping[str, Any],
    arms: Sequence[Arm],
    records: Mapping[tuple[str, int], Any],
    held: Mapping[str, Contest],
) -> dict[str, Any]:
    timings = batch_timings(arms, records)
    knee = run.get("knee")
    # Where no fewer steps held, the reference itself is the knee.
    start = None if knee is None else KNEE if knee["steps"] < knee["reference"] else BASELINE
    first = min(run["request"]["batch_size"], len(run["request"]["prompts"]))
    by_arm = {
        arm.name: {
            "speedup": {"value": timings.ratio(BASELINE, arm.name).as_dict()},
            **(
                {} if start is None else {"speedup_knee": {"value": timings.ratio(start, arm.name).as_dict()}}
            ),
            "seconds": _plain(timings.median(arm.name) / first),
            **_profile(run["profiles"].get(arm.name)),
            "batches": list(timings.seconds[arm.name]),
        }
        for arm in arms
    }
    return {
        "arms": by_arm,
        # How long the control really took, as a share of the candidate's time.
        "contests": {arm: timings.ratio(contest.against, arm).as_dict() for arm, contest in held.items()},
        "steps": {arm.name: _steps(store, arm.name)[1] for arm in arms if arm.role == "candidate"},
        "created": run["about"].get("created"),
        "command": run["about"].get("command"),
    }


def _profile(profile: Mapping[str, Any] | None) -> dict[str, Any]:
    """Peak memory in bytes above what was in use before, and seconds per stage, of one batch."""
    if profile is None:
        return {}
    memory = profile["memory"]
    return {"memory": {**_plain(memory["above_start"]), **memory}, "stages": profile["stages"]}


def _steps(store: RunStore, arm: str) -> tuple[list[dict[str, Any]], list[float]]:
    """What the techniques did in the first batch, step by step, and the milliseconds of each."""
    report = store.read_steps(arm)
    steps = report["steps"] if report is not None else []
    kept = [{key: value for key, value in step.items() if key != "milliseconds"} for step in steps]
    return kept, [step["milliseconds"] for step in steps]


def _gate_outcomes(
    gates: Sequence[Gate | BeatsFewerSteps],
    arms: Sequence[Arm],
    figures: Mapping[str, Mapping[str, Any]],
    efficiency: Mapping[str, Mapping[str, Any]],
    timed: Mapping[str, Mapping[str, Any]],
    won: Mapping[str, Mapping[str, Any]],
) -> list[tuple[Gate | BeatsFewerSteps, dict[str, Any]]]:
    def row(arm: str) -> dict[str, Any]:
        # Efficiency figures have no interval of their own, except the speed-up.
        flat = {
            name: value if "value" not in value or isinstance(value["value"], Mapping) else {"value": value}
            for name, value in {**efficiency[arm], **timed[arm]}.items()
            if isinstance(value, Mapping)
        }
        return {**figures[arm], **flat, **won.get(arm, {})}

    return [
        (gate, gate.check(arm.name, row(arm.name)))
        for gate in gates
        for arm in arms
        if arm.role == "candidate" and gate.arm in (None, arm.name)
    ] + [
        # A candidate that could not run at the knee, or had none to run at, meets no condition.
        (gate, gate.check(gate.arm, {}))
        for gate in gates
        if gate.arm is not None and gate.arm not in {arm.name for arm in arms}
    ]


def missed_gates(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outcomes of the gates that were missed."""
    return [outcome for outcome in (*document["gates"], *document["times"]["gates"]) if not outcome["held"]]
