"""The report of a comparison: one HTML file that needs neither network nor server."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.eval.compare.store import RunStore

__all__ = ["save_sweep", "unavailable", "write_report"]


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


def write_report(store: RunStore, document: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write ``report.html`` beside ``report.json``.

    Args:
        store: the finished run.
        document: content of its ``report.json``; with the key ``sweep``, quality over time is drawn (see
            :func:`hasten.eval.sweep.points.sweep_fields`), with the key ``tune``, the answer of a tuning stands first.
        folder: another one to write it to.

    Raises:
        HastenError: if the file cannot be written.
    """
    from hasten.eval.report.page import render_page
    from hasten.files import write_atomically

    target = (folder or store.folder) / "report.html"
    write_atomically(target, render_page(store, document).encode())
    return target


def save_sweep(fields: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a picture of quality over time for each metric, as PNG and as SVG.

    Args:
        fields: of :func:`hasten.eval.sweep.points.sweep_fields`.
        folder: where to.

    Raises:
        HastenError: if a file cannot be written.
    """
    from hasten.eval.report.sweep import save_pictures
    from hasten.eval.sweep.points import Curve, Quantity

    curves = [Curve.of(curve) for curve in fields["curves"]]
    quantities = [Quantity(**quantity) for quantity in fields["quantities"]]
    return [path for quantity in quantities for path in save_pictures(curves, quantity, folder)]
