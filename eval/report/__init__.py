"""The report of a comparison: one HTML file that needs neither network nor server."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.eval.compare.store import RunStore

__all__ = ["unavailable", "write_report"]


def unavailable() -> str | None:
    """Why no report can be made here and what to do about it, ``None`` where it can; to be asked before any work."""
    reasons = []
    for name in ("matplotlib", "jinja2"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            reasons.append(error.name or name)
        except Exception as error:  # a broken library, or a broken configuration of it, may raise anything
            reasons.append(f"{name}, which does not load ({type(error).__name__}: {error})")
    if not reasons:
        return None
    return f"the HTML report is not written, because it needs {' and '.join(reasons)}: pip install 'hasten[report]'"


def write_report(store: RunStore, document: Mapping[str, Any]) -> Path:
    """Write ``report.html`` beside ``report.json``.

    Args:
        store: the finished run.
        document: content of its ``report.json``.

    Raises:
        HastenError: if the file cannot be written.
    """
    from hasten.eval.report.page import render_page
    from hasten.files import write_atomically

    target = store.folder / "report.html"
    write_atomically(target, render_page(store, document).encode())
    return target
