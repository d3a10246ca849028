"""The commands ``hasten demo``, ``compare``, ``tune`` and ``eval``; each is imported when the tool starts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hasten.extend import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Add ``demo``, ``compare``, ``tune`` and ``eval``."""
    for module in ("demo", "compare", "tune", "evaluate"):
        import_module(f"hasten.eval.commands.{module}").register(app)
