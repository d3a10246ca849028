"""The comparison on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hasten.eval.compare.wording import (
    MINIATURE_NOTE,
    change_text,
    estimate_text,
    headline,
    number,
    speed_text,
)

__all__ = ["print_report"]


def print_report(document: Mapping[str, Any], console: Console, written: Sequence[Path]) -> None:
    """Verdicts, one table of all rows, and where everything is."""
    for arm in document["arms"]:
        if arm["role"] == "candidate":
            console.print(f"[bold]{escape(headline(document, arm['name']))}[/]", highlight=False)
    console.print(_speed_table(document))
    console.print(_quality_table(document))
    level = f"{100 * document['settings']['level']:g} %"
    notes = [f"in brackets: {level} intervals; differences are over pairs of the same prompt and seed"]
    if any(metric["miniature"] for metric in document["metrics"].values()):
        notes.append(MINIATURE_NOTE)
    for note in (*notes, *document["warnings"]):
        console.print(f"- {note}", markup=False, highlight=False)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _speed_table(document: Mapping[str, Any]) -> Table:
    table = Table(title=escape(f"{document['model']}, {len(document['prompts'])} prompts, same seeds"))
    for heading in ("", "steps", "s / picture", "speed-up", "FLOPs"):
        table.add_column(heading, justify="left" if not heading else "right")
    for arm in document["arms"]:
        name, plain = arm["name"], arm["role"] == "baseline"
        seconds = number(document["times"]["arms"][name]["seconds"]["value"])
        speed = "" if plain else speed_text(document, name)
        flops = "" if plain else f"1/{arm['flops_ratio']['value']:.2f}"
        table.add_row(escape(name), str(arm["steps"]), seconds, escape(speed), flops)
    return table


def _quality_table(document: Mapping[str, Any]) -> Table:
    table = Table()
    for heading in ("metric", "row", "figure", "difference to the baseline"):
        table.add_column(heading, justify="right" if heading not in ("metric", "row") else "left")
    for metric, about in document["metrics"].items():
        title = f"{metric} {'↑' if about['higher_is_better'] else '↓'}"
        for arm in document["arms"]:
            figure = document["figures"][arm["name"]].get(metric)
            if figure is not None:
                cells = (title, arm["name"], estimate_text(figure["value"]), change_text(figure))
                table.add_row(*map(escape, cells))
                title = ""
        table.add_section()
    return table
