"""The terminal, for every command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from hasten._shown import printable

__all__ = ["Console"]


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
