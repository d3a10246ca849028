"""``peers.json``: everything that was measured, and who is fastest within the tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hasten.eval.bench.peers.arms import OURS, PLAIN, REPEATED, Row
from hasten.eval.bench.peers.run import Made, Request
from hasten.eval.compare.analysis import analyse, batch_timings
from hasten.eval.compare.document import Evaluation, score_arms
from hasten.eval.compare.engine import BASELINE, REPEAT
from hasten.eval.efficiency.timing import Timings
from hasten.eval.statistics import Estimate
from hasten.eval.sweep.points import Curve, Quantity, sweep_fields
from hasten.eval.sweep.run import curves_of

__all__ = ["NOISY", "judge_peers"]

NOISY = 0.1
"""Half-width of the interval of one setting's time against itself from which the machine is called noisy."""


def judge_peers(made: Made, request: Request, evaluation: Evaluation, missing: str | None) -> dict[str, Any]:
    """Score the pictures that all rows have, and find the best of everyone.

    Args:
        made: the pictures.
        request: what was asked for.
        evaluation: metrics, level and margins.
        missing: what is not installed, in words.

    Raises:
        ConfigError: a metric can't be computed on the pictures.
    """
    run, arms = made.store.read_run(), [row.arm for row in made.rows]
    assert run is not None, "what was made is judged"
    prompts = request.job.prompts[: made.prompts]
    records = {key: record for key, record in made.store.records().items() if key[1] < made.prompts}
    scored = score_arms(made.store, [arm.name for arm in arms], prompts, evaluation)
    rows = analyse(arms, prompts, scored.samples, scored.sets, evaluation.settings)
    places = [{"curve": row.curve, "label": row.label} for row in made.rows]
    plain = {row.curve for row in made.rows if row.owner == PLAIN}
    batch = min(request.job.batch_size, len(prompts))
    every = curves_of(arms, places, plain, rows, records, batch)
    curves = [curve for curve in every if curve.name != REPEATED]
    quantities = [Quantity(m.name, m.higher_is_better, m.unit) for m in evaluation.metrics]
    timings = batch_timings(arms, records)
    same = all(records[BASELINE, i].sha256 == records[REPEAT, i].sha256 for i in range(len(prompts)))
    table = _table(made.rows, every, evaluation)
    return sweep_fields(
        curves,
        quantities,
        schema=1,
        model=request.model,
        asked=len(request.job.prompts),
        prompts=len(prompts),
        seed=request.job.seed,
        batch_size=request.job.batch_size,
        call=dict(request.job.call),
        level=evaluation.settings.level,
        margins=dict(evaluation.settings.margins or {}),
        peers={
            peer.name: {"about": peer.about, "package": peer.package, "version": peer.installed}
            for peer in request.peers
        },
        about={key: value for key, value in run["about"].items() if key not in ("notes", "pace")},
        notes=[*made.notes, *([missing] if missing else [])],
        warnings=_warnings(len(prompts), timings.ratio(REPEAT, BASELINE), same=same),
        rows=table,
        best=_best(table, timings),
    )


def _table(rows: Sequence[Row], curves: Sequence[Curve], evaluation: Evaluation) -> list[dict[str, Any]]:
    points = {point.name: point for curve in curves for point in curve.points}
    higher = {metric.name: metric.higher_is_better for metric in evaluation.metrics}
    margins = evaluation.settings.margins or {}
    found = []
    for row in rows:
        point = points[row.arm.name]
        changes = point.facts["changes"]
        lost = {
            name: (-1 if higher[name] else 1) * changes[name]["value"] for name in margins if name in changes
        }
        found.append(
            {
                **row.to_dict(),
                "steps": row.arm.steps,
                "seconds": dict(point.seconds),
                "figures": dict(point.figures),
                "changes": dict(changes),
                "within": all(lost.get(name, 0.0) <= margin for name, margin in margins.items()),
            }
        )
    return found


def _best(table: Sequence[Mapping[str, Any]], timings: Timings) -> list[dict[str, Any]]:
    """Of every owner: what it recommends, fastest first, and its fastest row within the margins.

    Each with its speed against the fastest plain sampling within the margins: the knee, by the estimates.
    """
    rows = [row for row in table if row["name"] != REPEAT]
    knee = min((row for row in rows if row["owner"] == PLAIN and row["within"]), key=_seconds)
    found = []
    for owner in dict.fromkeys(row["owner"] for row in rows):
        own = [row for row in rows if row["owner"] == owner]
        kinds = {"recommended": [row for row in own if row["recommended"]], "tuned": own}
        for kind, among in kinds.items():
            able = sorted((row for row in among if row["within"] or kind == "recommended"), key=_seconds)
            chosen = able[:1] if kind == "tuned" or owner != OURS else able
            found += [
                {
                    "owner": owner,
                    "kind": kind,
                    "name": row["name"],
                    "against_knee": timings.ratio(knee["name"], row["name"]).as_dict(),
                    "within": row["within"],
                }
                for row in chosen
            ]
    return found


def _seconds(row: Mapping[str, Any]) -> float:
    return float(row["seconds"]["value"])


def _warnings(prompts: int, repeat: Estimate, *, same: bool) -> list[str]:
    found = []
    if prompts < 16:
        found.append(
            f"{prompts} prompts are few: only large losses are found, and intervals of times are wide"
        )
    low, high = repeat.low, repeat.high
    if low is None or high is None or not 1 - NOISY <= low <= high <= 1 + NOISY:
        told = "unknown" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        found.append(
            f"this machine is too noisy to tell small differences: a repeated run takes {told} times as long; run on "
            "an "
            "idle machine, or more prompts"
        )
    if not same:
        found.append(
            "a second plain run made other pictures than the first: this machine is not deterministic, or a package "
            "left something on the pipeline"
        )
    return found
