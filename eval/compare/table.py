"""The comparison on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hasten.eval.compare.wording import MINIATURE_NOTE, estimate_text, headline, number, speed_text

__all__ = ["print_report"]


def print_report(document: Mapping[str, Any], console: Console, written: Sequence[Path]) -> None:
    """Verdicts, one table of all rows, and where everything is."""
    for arm in document["arms"]:
        if arm["role"] == "candidate":
            console.print(f"[bold]{escape(headline(document, arm['name']))}[/]", highlight=False)
    console.print(_table(document))
    level = f"{100 * document['settings']['level']:g} %"
    notes = [f"in brackets: {level} intervals; second line: difference to the baseline over pairs"]
    if any(metric["miniature"] for metric in document["metrics"].values()):
        notes.append(MINIATURE_NOTE)
    for note in (*notes, *document["warnings"]):
        console.print(f"- {note}", markup=False, highlight=False)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _table(document: Mapping[str, Any]) -> Table:
    title = f"{document['model']}, {len(document['prompts'])} prompts, same seeds"
    table = Table(title=escape(title))
    for heading in ("", "steps", "s / picture", "speed-up", "FLOPs", *document["metrics"]):
        table.add_column(escape(heading), justify="left" if not heading else "right")
    for arm in document["arms"]:
        table.add_row(*(escape(cell) for cell in _cells(document, arm)))
    return table


def _cells(document: Mapping[str, Any], arm: Mapping[str, Any]) -> list[str]:
    name, plain = arm["name"], arm["role"] == "baseline"
    figures = document["figures"][name]
    return [
        name,
        str(arm["steps"]),
        number(document["times"]["arms"][name]["seconds"]["value"]),
        "" if plain else speed_text(document, name),
        "" if plain else f"1/{arm['flops_ratio']['value']:.2f}",
        *(_figure_cell(figures.get(metric)) for metric in document["metrics"]),
    ]


def _figure_cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    if figure["change"] is None:
        return estimate_text(figure["value"])
    change = figure["change"]
    low, high = number(change["low"], signed=True), number(change["high"], signed=True)
    return f"{number(figure['value']['value'])}\n{number(change['value'], signed=True)} [{low}, {high}]"
