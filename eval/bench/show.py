"""What a benchmark prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich import box
from rich.markup import escape

from hasten.commands import Console, Table

__all__ = ["show"]


def show(title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), *, as_json: bool) -> None:
    """Print a benchmark: a table with a column per key of its rows, or JSON with the machine beside it.

    Args:
        title: what was measured.
        rows: all with the same keys.
        notes: lines below the table.
        as_json: print JSON.
    """
    from hasten.commands import describe_machine

    machine = describe_machine()
    if as_json:
        typer.echo(
            json.dumps(
                {"title": title, "machine": machine, "rows": list(rows), "notes": list(notes)}, indent=1
            )
        )
        return
    table = Table(title=escape(title), box=box.SIMPLE_HEAD)
    for number, key in enumerate(rows[0]):
        table.add_column(key, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(escape(f"{v:.3g}" if isinstance(v, float) else str(v)) for v in row.values()))
    console = Console()
    console.print(table)
    for note in (*notes, ", ".join(f"{key} {value}" for key, value in machine.items())):
        console.print(f"- {note}", markup=False, highlight=False)
