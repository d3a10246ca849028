"""Puts figures, charts and pictures into the template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hasten.commands import printable
from hasten.eval.compare.engine import BASELINE, REPEAT
from hasten.eval.compare.store import slug
from hasten.eval.compare.wording import (
    MINIATURE_NOTE,
    change_text,
    estimate_text,
    headline,
    knee_text,
    measured_text,
    memory_text,
    number,
    sameness_text,
    speed_text,
    stages_text,
    steps_text,
    verdict_text,
)
from hasten.eval.report.charts import marks, pareto, timeline
from hasten.eval.report.pictures import SIDE, WORST, choose_prompts, data_uri
from hasten.eval.report.sweep import draw_for_page
from hasten.eval.sweep.points import Curve, Quantity

if TYPE_CHECKING:
    from hasten.eval.compare.store import RunStore

__all__ = ["render_page"]

_TEMPLATES = Path(__file__).with_name("templates")


def render_page(store: RunStore, document: Mapping[str, Any]) -> str:
    """The whole page as text.

    Args:
        store: where the pictures are.
        document: content of the run's ``report.json``.
    """
    candidates = [arm["name"] for arm in document["arms"] if arm["role"] == "candidate"]
    return (
        _environment()
        .get_template("report.html")
        .render(
            document=document,
            run=store.read_run(),
            style=Markup((_TEMPLATES / "report.css").read_text("utf-8")),
            script=Markup((_TEMPLATES / "report.js").read_text("utf-8")),
            headlines={arm: headline(document, arm) for arm in candidates},
            verdict=partial(verdict_text, document),
            outcome={arm: _outcome(document, arm) for arm in candidates},
            speeds={arm["name"]: speed_text(document, arm["name"]) for arm in document["arms"]},
            beside_knee={
                arm["name"]: speed_text(document, arm["name"], "speedup_knee") for arm in document["arms"]
            },
            knee=knee_text(document),
            memory={arm["name"]: memory_text(document, arm["name"]) for arm in document["arms"]},
            stages={arm["name"]: stages_text(document, arm["name"]) for arm in document["arms"]},
            source=document["times"]["arms"][BASELINE].get("memory", {}).get("source", ""),
            sameness={arm["name"]: sameness_text(arm) for arm in document["arms"] if arm["sameness"]},
            gates=[*document["gates"], *document["times"]["gates"]],
            miniature=MINIATURE_NOTE if any(m["miniature"] for m in document["metrics"].values()) else "",
            sweep=_sweep_pictures(document),
            charts=[pareto(document, metric) for metric in document["metrics"]],
            timelines={
                arm: timeline(document, arm, i) for i, arm in enumerate(candidates) if document["steps"][arm]
            },
            rows=_sample_rows(document, candidates),
            gallery=_gallery(store, document),
            shown=_shown(document),
            marks=marks(document),
            worst=WORST,
            side=SIDE,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "change": change_text,
        "estimate": estimate_text,
        "interval": _interval,
        "measured": measured_text,
        "number": number,
        "pretty": lambda value: json.dumps(value, indent=2, sort_keys=True),
        "slug": slug,
        "steps": steps_text,
    }
    return environment


def _interval(estimate: Mapping[str, Any], signed: bool = False) -> str:
    """An estimate in words; one without a known interval by its value alone."""
    if estimate["low"] is None and estimate["high"] is None:
        return number(estimate["value"], signed)
    return estimate_text(estimate, signed)


def _sweep_pictures(document: Mapping[str, Any]) -> list[Markup]:
    """Quality over time by each metric; empty without a sweep."""
    fields = document.get("sweep")
    if fields is None:
        return []
    curves = [Curve.of(curve) for curve in fields["curves"]]
    return [draw_for_page(curves, Quantity(**quantity)) for quantity in fields["quantities"]]


def _outcome(document: Mapping[str, Any], arm: str) -> str:
    """The worst thing known about a candidate, in this order: missed (a margin or gate), lost, undecided, won (against
    plain sampling in the same time), held; open without a margin, gate or control.
    """
    verdicts = [
        f["verdict"]["outcome"] for f in document["figures"][arm].values() if f["verdict"] is not None
    ]
    gates = [g for g in (*document["gates"], *document["times"]["gates"]) if g["arm"] == arm]
    verdicts += ["held" if gate["held"] else "missed" for gate in gates]
    if contest := document["contests"].get(arm):
        verdicts.append(contest["outcome"])
    order = ("missed", "lost", "undecided", "won", "held")
    return next((outcome for outcome in order if outcome in verdicts), "open")


def _shown(document: Mapping[str, Any]) -> list[str]:
    """Arms whose pictures are shown; a repeat that is the baseline to the bit would only take room."""
    same = document["pictures"].get(REPEAT) == document["pictures"][BASELINE]
    return [arm["name"] for arm in document["arms"] if not (arm["name"] == REPEAT and same)]


def _sample_rows(document: Mapping[str, Any], candidates: list[str]) -> list[dict[str, Any]]:
    """One row per prompt and candidate: each metric's score, and its change where the baseline has one."""
    rows = []
    for index, prompt in enumerate(document["prompts"]):
        for arm in candidates:
            cells = []
            for scores in document["scores"].values():
                value = scores[arm][index]
                base = scores[BASELINE][index] if BASELINE in scores else None
                cells.append({"value": value, "change": None if base is None else value - base})
            rows.append({"index": index, "prompt": prompt, "arm": arm, "cells": cells})
    return rows


def _gallery(store: RunStore, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompts to look at, with every arm's picture and scores."""
    gallery = []
    for chosen in choose_prompts(document):
        pictures = [
            {
                "arm": arm,
                "uri": data_uri(store.open_frames(arm, chosen.index)),
                "scores": {
                    metric: scores[arm][chosen.index]
                    for metric, scores in document["scores"].items()
                    if arm in scores
                },
            }
            for arm in _shown(document)
        ]
        prompt = document["prompts"][chosen.index]
        gallery.append(
            {"index": chosen.index, "prompt": prompt, "reasons": chosen.reasons, "pictures": pictures}
        )
    return gallery
