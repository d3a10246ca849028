"""The report of a comparison: one HTML file that needs neither network nor server."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten._errors import ConfigError

if TYPE_CHECKING:
    from hasten.eval.compare.store import RunStore

__all__ = ["require_libraries", "write_report"]


def require_libraries() -> None:
    """Check for what the report is made with, before any work is spent.

    Raises:
        ConfigError: names what is missing and how to get it.
    """
    absent = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"the HTML report needs {' and '.join(absent)}: pip install 'hasten[report]', or give --no-report"
        )


def write_report(store: RunStore, document: Mapping[str, Any]) -> Path:
    """Write ``report.html`` beside ``report.json``.

    Args:
        store: the finished run.
        document: content of its ``report.json``.

    Raises:
        HastenError: if the file cannot be written.
    """
    from hasten._records import write_atomically
    from hasten.eval.report.page import render_page

    target = store.folder / "report.html"
    write_atomically(target, render_page(store, document).encode())
    return target
