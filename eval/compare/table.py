"""The comparison on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape

from hasten.commands import Console, Table
from hasten.eval.compare.wording import (
    MINIATURE_NOTE,
    change_text,
    estimate_text,
    forwards_text,
    headline,
    knee_text,
    memory_text,
    number,
    sameness_text,
    speed_text,
    stages_text,
    steps_text,
)

__all__ = ["print_report"]


def print_report(document: Mapping[str, Any], console: Console, written: Sequence[Path]) -> None:
    """Verdicts, one table of all rows, and where everything is."""
    for arm in document["arms"]:
        if arm["role"] == "candidate":
            console.print(f"[bold]{escape(headline(document, arm['name']))}[/]", highlight=False)
    console.print(_speed_table(document))
    console.print(_quality_table(document))
    if document["contests"]:
        console.print(_contest_table(document))
    level = f"{100 * document['settings']['level']:g} %"
    notes = [knee_text(document), *((document["knee"] or {}).get("notes", ()))]
    notes += [
        f"{arm['name']}, first batch, by latent size: {forwards_text(document, arm['name'])}"
        for arm in document["arms"]
        if document["steps"].get(arm["name"])
    ]
    notes += [
        f"{arm['name']}: {text}" for arm in document["arms"] if (text := stages_text(document, arm["name"]))
    ]
    if any(metric["against_baseline"] for metric in document["metrics"].values()):
        notes += [f"{arm['name']} {sameness_text(arm)}" for arm in document["arms"] if arm["sameness"]]
    notes += [
        f"{arm}: the intervals against {contest['against']!r} hold together for all metrics that decide"
        for arm, contest in list(document["contests"].items())[:1]
        if sum(difference["decides"] for difference in contest["differences"].values()) > 1
    ]
    notes += [f"in brackets: {level} intervals; differences are over pairs of the same prompt and seed"]
    if any(metric["miniature"] for metric in document["metrics"].values()):
        notes.append(MINIATURE_NOTE)
    for note in (*notes, *document["warnings"]):
        console.print(f"- {note}", markup=False, highlight=False)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _speed_table(document: Mapping[str, Any]) -> Table:
    title = f"{document['model']}, {len(document['prompts'])} prompts, same seeds"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    kneed = document["knee"] is not None
    against = ("vs knee",) if kneed else ()
    for heading in ("", "steps", "s each", "speed-up", *against, "FLOPs", "memory"):
        # Figures stay whole; names, which may be long, are folded.
        table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    for arm in document["arms"]:
        name, plain = arm["name"], arm["role"] == "baseline"
        seconds = number(document["times"]["arms"][name]["seconds"]["value"])
        speed = "" if plain else speed_text(document, name)
        flops = "" if plain else f"1/{arm['flops_ratio']['value']:.2f}"
        memory = memory_text(document, name)
        # Without its interval, which the headline has: there is no room in 80 columns.
        beside = (speed_text(document, name, "speedup_knee").split()[0],) if kneed else ()
        table.add_row(escape(name), steps_text(arm), seconds, escape(speed), *beside, flops, memory)
    return table


def _quality_table(document: Mapping[str, Any]) -> Table:
    """A block of rows per metric; its name takes a line of its own, so that figures fit into 80 columns."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("metric", "figure", "change from baseline"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for metric, about in document["metrics"].items():
        table.add_row(f"[bold]{escape(metric)}[/] {'↑' if about['higher_is_better'] else '↓'}", "", "")
        for arm in document["arms"]:
            figure = document["figures"][arm["name"]].get(metric)
            if figure is not None:
                cells = (f"  {arm['name']}", estimate_text(figure["value"]), change_text(figure))
                table.add_row(*map(escape, cells))
    return table


def _contest_table(document: Mapping[str, Any]) -> Table:
    """Candidates against plain sampling in their time, a block of rows for each."""
    table = Table(title="against plain sampling in the same time", box=box.SIMPLE_HEAD)
    for heading in ("configuration, metric", "difference", "better"):
        table.add_column(heading, justify="left" if "," in heading else "right")
    for arm, contest in document["contests"].items():
        title = f"[bold]{escape(arm)}[/], {contest['outcome']} ({contest['steps']} steps)"
        table.add_row(title, "", "")
        for metric, difference in contest["differences"].items():
            if document["metrics"][metric]["against_baseline"]:
                continue  # closeness to the baseline says nothing about who is better
            side = difference["better"] or "undecided"
            cells = (f"  {metric}", change_text(difference), side if difference["decides"] else f"({side})")
            table.add_row(*map(escape, cells))
    return table
