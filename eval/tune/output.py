"""What a tuning leaves: a configuration file, everything that was measured, the curve and the report."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from hasten.eval.compare.wording import estimate_text
from hasten.eval.sweep.points import Curve, Point, Quantity, sweep_fields
from hasten.eval.tune.answer import Answer, reasons
from hasten.eval.tune.confirm import Standing
from hasten.eval.tune.run import Request, Tuned, Tuning
from hasten.eval.tune.search import Result
from hasten.eval.tune.setting import Setting
from hasten.files import write_atomically

__all__ = ["CONFIGURATION", "curves_of", "document_of", "write_configuration", "write_json"]

CONFIGURATION = "tuned.yaml"
_WIDTH = 116
_KEYS = {"height": "height", "width": "width", "num_frames": "frames", "guidance_scale": "guidance_scale"}
"""Arguments of the call that a configuration file has a key for."""


def write_configuration(folder: Path, answer: Answer, request: Request, notes: Sequence[str]) -> Path:
    """Write ``tuned.yaml``, which every command takes with ``--config``; comments tell the evidence.

    Args:
        folder: of the tuning.
        answer: what to write.
        request: what was tuned.
        notes: sentences for the comments.
    """
    call, setting = request.job.call, answer.setting.to_dict()
    content: dict[str, Any] = {"schema": 1, "model": request.model}
    content |= {key: call[argument] for argument, key in _KEYS.items() if argument in call}
    content |= {"dtype": request.dtype, "steps": setting["steps"]}
    solver = setting["solver"] or request.solver
    content |= {} if solver is None else {"solver": solver}
    content["techniques"] = setting["techniques"]
    buffer = io.StringIO()
    for note in ("Written by `hasten tune`.", f"{answer.sentence[:1].upper()}{answer.sentence[1:]}.", *notes):
        lines = textwrap.wrap(" ".join(note.split()), _WIDTH)
        buffer.write("".join(f"# {line}\n" for line in lines))
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(content, buffer)
    target = folder / CONFIGURATION
    write_atomically(target, buffer.getvalue().encode())
    return target


def document_of(tuning: Tuning, tuned: Tuned, own: str) -> dict[str, Any]:
    """Everything that was measured, ready for JSON.

    Args:
        tuning: what was asked for.
        tuned: what was found.
        own: name of the pipeline's own solver.
    """
    timed = not tuned.noise.too_much
    axis = "seconds a picture" if timed else "share of the reference's FLOPs"
    settings = tuning.evaluation.settings
    margins = dict(settings.margins or {})
    cost = tuned.reference if timed else 1.0
    curves = curves_of(tuned.results, {"steps": tuning.request.steps, "cost": cost}, own)
    quantities = [
        Quantity(metric.name, metric.higher_is_better, metric.unit, axis, True, margins[metric.name])
        for metric in tuning.evaluation.metrics
        if metric.name in margins
    ]
    notes = [f"The line is the margin. The search's own figures, over {tuned.budget.search} prompts."]
    unit = "s a picture" if timed else "of the reference's FLOPs"
    return {
        "schema": 1,
        "model": tuning.request.model,
        "request": tuning.request.to_dict(),
        "minutes": tuning.request.minutes,
        "margins": margins,
        "level": settings.level,
        "answer": tuned.answer.to_dict(),
        "evidence": _evidence(tuning, tuned),
        "techniques": reasons(tuned.space, tuned.results, tuned.skipped, tuned.answer, unit),
        "warnings": list(tuned.warnings),
        "budget": asdict(tuned.budget),
        "reference": {"steps": tuning.request.steps, "seconds": tuned.reference},
        "noise": {"spread": tuned.noise.spread, "timed": timed},
        "confirmed": [_standing(standing) for standing in tuned.standings],
        "results": [asdict(result) for result in tuned.results],
        "skipped": [{"setting": setting.to_dict(), "why": why} for setting, why in tuned.skipped],
        "sweep": sweep_fields(curves, quantities, notes=notes),
        "about": dict(tuning.about),
    }


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "name": standing.finalist.name,
        "setting": standing.finalist.setting.to_dict(),
        "held": standing.held,
        "outcomes": dict(standing.outcomes),
        "changes": {name: change.as_dict() for name, change in standing.changes.items()},
        "speedup": standing.speedup.as_dict(),
        "seconds": standing.seconds,
        "flops_ratio": standing.flops,
    }


def _evidence(tuning: Tuning, tuned: Tuned) -> list[str]:
    """Where the answer comes from, in sentences."""
    machine = tuning.about["machine"]
    where = machine.get("gpu") or machine["processor"]
    found = [
        f"Settings looked at: {len(tuned.results)}, on up to {tuned.budget.search} prompts; ruled out before: "
        f"{len(tuned.skipped)}. On {where}, {tuning.request.dtype}, batches of {tuning.request.job.batch_size}."
    ]
    if tuned.standings:
        found.append(
            f"Confirmed on {tuned.budget.confirm} prompts that the search never saw; the intervals of all finalists "
            f"({len(tuned.standings)}) hold together at {100 * tuning.evaluation.settings.level:g} %."
        )
    found += [
        f"{standing.finalist.setting.describe()}: {standing.speedup.value:.2f}x the reference's speed, "
        + ", ".join(
            f"{name} {estimate_text(standing.changes[name].as_dict(), True)} ({outcome})"
            for name, outcome in standing.outcomes.items()
        )
        + "."
        for standing in tuned.standings
    ]
    return found


def write_json(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write ``tune.json``."""
    target = folder / "tune.json"
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(target, text.encode())
    return target


def curves_of(results: Sequence[Result], reference: Mapping[str, Any], own: str) -> list[Curve]:
    """What the search saw on all of its prompts: a curve for each solver of plain sampling and each set of techniques.

    Args:
        results: of the search.
        reference: ``steps`` and ``cost`` of the baseline, which lies at a change of zero.
        own: name of the pipeline's own solver.
    """
    full = max((result.prompts for result in results), default=0)
    metrics = next((list(result.figures) for result in results), [])
    start = Point(
        "reference",
        str(reference["steps"]),
        _exactly(reference["cost"]),
        {name: _exactly(0.0) for name in metrics},
    )
    groups: dict[str, list[Point]] = {f"plain, {own}": [start]}
    for result in results:
        if result.prompts < full:
            continue
        setting = Setting.of(result.setting)
        name = f"plain, {setting.solver or own}" if setting.plain else " + ".join(setting.techniques)
        figures = {metric: figure["change"] for metric, figure in result.figures.items()}
        point = Point(
            setting.describe(), str(setting.steps), _exactly(result.cost), figures, setting.to_dict()
        )
        groups.setdefault(name, []).append(point)
    return [
        Curve(
            name,
            tuple(sorted(points, key=lambda p: p.seconds["value"])),
            plain=name.startswith("plain, "),
            joined=name.startswith("plain, "),
        )
        for name, points in groups.items()
    ]


def _exactly(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}
