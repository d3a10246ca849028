"""How every chart is drawn: in the colours of a page, which are CSS variables, or in fixed ones for a file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

__all__ = ["PAGE", "PRINT", "SHAPES", "Palette", "drawing", "interval_ends", "svg"]

# Shape and colour, so that rows can be told apart without colours; (matplotlib's name, filled, hollow).
SHAPES = (
    ("o", "●", "○"),
    ("s", "■", "□"),
    ("^", "▲", "△"),
    ("D", "◆", "◇"),
    ("v", "▼", "▽"),
    ("*", "★", "☆"),
)


@dataclass(frozen=True)
class Palette:
    """Colours of a chart: text, what is less important, grid lines, the ground, and the rows."""

    ink: str
    faint: str
    line: str
    paper: str
    rows: tuple[str, ...]


PAGE = Palette("#010101", "#010102", "#010103", "none", tuple(f"#0202{number:02x}" for number in range(8)))
"""Placeholders that :func:`svg` replaces by variables of the page's style sheet: for light, dark and print."""

PRINT = Palette(
    "#1b1e23",
    "#8b929b",
    "#dfe3e8",
    "#ffffff",
    ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7d8793"),
)
"""Okabe's and Ito's colours, which are told apart with any kind of colour vision."""

_VARIABLES = {PAGE.ink: "var(--ink)", PAGE.faint: "var(--faint)", PAGE.line: "var(--line)"}
_VARIABLES |= {colour: f"var(--row-{number})" for number, colour in enumerate(PAGE.rows)}


def _style(palette: Palette) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # names are names, whatever is in them
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": palette.ink,
        "axes.facecolor": palette.paper,
        "axes.edgecolor": palette.line,
        "axes.labelcolor": palette.faint if palette is PAGE else palette.ink,
        "axes.titlecolor": palette.ink,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "figure.facecolor": palette.paper,
        "grid.color": palette.line,
        "grid.linewidth": 0.6,
        "xtick.color": palette.faint if palette is PAGE else palette.ink,
        "ytick.color": palette.faint if palette is PAGE else palette.ink,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
    }


@contextmanager
def drawing(name: str, palette: Palette = PAGE) -> Iterator[None]:
    """Matplotlib in our style for the length of a ``with`` block.

    Args:
        name: of the drawing. It makes the identifiers inside of it the same every time, and different from other
            drawings'.
        palette: its colours.
    """
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own configuration may ask for LaTeX
        mpl.rcParams.update({**_style(palette), "svg.hashsalt": name})
        yield


def svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure that was drawn with :data:`PAGE`, to stand inside a page.

    Args:
        figure: what was drawn.
        name: as given to :func:`drawing`.
        description: read out instead of it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="|url\(#|href="#', lambda found: f"{found[0]}{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    size = r'<svg[^>]*?\bviewBox="([^"]+)"[^>]*>'
    head = f'<svg role="img" aria-label="{escape(description)}" xmlns="http://www.w3.org/2000/svg" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox='
    return Markup(re.sub(size, lambda found: f'{head}"{found[1]}">', text, count=1))


def interval_ends(estimate: Any) -> list[list[float]]:
    """Interval of an estimate's fields as matplotlib's error bars; an open end is not drawn."""
    value = estimate["value"]
    low = value if estimate["low"] is None else estimate["low"]
    high = value if estimate["high"] is None else estimate["high"]
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
