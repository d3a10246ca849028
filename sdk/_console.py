"""The terminal, for every command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import rich.console
import rich.table
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from hasten._shown import printable

__all__ = ["Console", "Table"]

_UNBOUNDED = 10_000


class Console(rich.console.Console):
    """rich's console, in which a file name or a prompt cannot speak to the terminal.

    Markup stays on: text of the user's goes through ``rich.markup.escape``, or is printed with ``markup=False``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What rich makes of ``renderable``, with control characters that are not rich's own written out."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class Table(rich.table.Table):
    """rich's table, in which nothing is cut: figures, the columns to the right, stay whole, and texts are folded."""

    def add_column(self, header: RenderableType = "", **options: Any) -> None:  # type: ignore[override]
        """As in rich; texts that do not fit go on in the next line."""
        super().add_column(header, **{"overflow": "fold", **options})

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> Iterable[Any]:
        """As in rich; where there is too little room, headings of figures are folded before texts are."""
        figures = [column for column in self.columns if column.justify == "right"]
        for column in figures:
            column.no_wrap = True
        if console.measure(self, options=options.update(width=_UNBOUNDED)).maximum > options.max_width:
            for column in figures:
                _fold_heading(column)
        return super().__rich_console__(console, options)


def _fold_heading(column: rich.table.Column) -> None:
    cells = (cell for cell in column.cells if isinstance(cell, str))
    widest = max((Text.from_markup(cell).cell_len for cell in cells), default=0)
    if isinstance(column.header, str):
        words = textwrap.wrap(column.header, max(widest, 1), break_long_words=False)
        column.header = "\n".join(words)
