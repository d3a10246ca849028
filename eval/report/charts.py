"""Charts as inline SVG whose colours are CSS variables, so that one drawing serves light, dark and print."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

__all__ = ["Mark", "marks", "pareto", "timeline"]

# Matplotlib draws with these; afterwards each becomes a variable of the page's style sheet.
_INK, _FAINT, _LINE = "#010101", "#010102", "#010103"
_ROWS = tuple(f"#0202{number:02x}" for number in range(8))
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--faint)", _LINE: "var(--line)"}
_VARIABLES |= {colour: f"var(--row-{number})" for number, colour in enumerate(_ROWS)}

# Shape and colour, so that rows can be told apart without colours; (matplotlib's name, filled, hollow).
_SHAPES = (
    ("o", "●", "○"),
    ("s", "■", "□"),
    ("^", "▲", "△"),
    ("D", "◆", "◇"),
    ("v", "▼", "▽"),
    ("*", "★", "☆"),
)


@dataclass(frozen=True)
class Mark:
    """How a row is drawn in every chart: number of its colour, matplotlib's marker, the same as a character."""

    colour: int
    marker: str
    symbol: str
    hollow: bool


def marks(document: Mapping[str, Any]) -> dict[str, Mark]:
    """The mark of every row; controls are hollow. Past the last colour or shape they begin again."""
    found = {}
    for number, arm in enumerate(document["arms"]):
        marker, filled, hollow = _SHAPES[number % len(_SHAPES)]
        control = arm["role"] == "control"
        found[arm["name"]] = Mark(number % len(_ROWS), marker, hollow if control else filled, control)
    return found


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are names, whatever is in them
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@contextmanager
def _drawing(name: str) -> Iterator[None]:
    # The salt makes the identifiers inside the drawing the same every time, and different from other drawings'.
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own configuration may ask for LaTeX
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": name})
        yield


def _svg(figure: Figure, name: str, description: str) -> Markup:
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


def _ends(estimate: Mapping[str, Any]) -> list[list[float]]:
    """Interval as matplotlib's error bars; an open end is not drawn."""
    value = estimate["value"]
    low = value if estimate["low"] is None else estimate["low"]
    high = value if estimate["high"] is None else estimate["high"]
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def pareto(document: Mapping[str, Any], metric: str) -> Markup:
    """Speed-up against one metric, every row a point with both intervals; controls are hollow."""
    about = document["metrics"][metric]
    name = f"pareto-{metric}"
    with _drawing(name):
        figure = Figure(figsize=(3.6, 2.7))
        axes = figure.subplots()
        for arm, mark in marks(document).items():
            row = document["figures"][arm].get(metric)
            if row is None:
                continue
            speed, value = document["times"]["arms"][arm]["speedup"]["value"], row["value"]
            colour = _ROWS[mark.colour]
            axes.errorbar(
                [speed["value"]],
                [value["value"]],
                xerr=_ends(speed),
                yerr=_ends(value),
                fmt=mark.marker,
                markersize=6,
                linewidth=1.2,
                color=colour,
                markerfacecolor="none" if mark.hollow else colour,
            )
        better = "higher" if about["higher_is_better"] else "lower"
        axes.set_title(textwrap.fill(f"{metric} ({better} is better)", 44))
        axes.set_xlabel("times the baseline's speed")
        axes.margins(0.1)
        return _svg(figure, name, f"Speed against {metric}; the figures are in the table of all rows")


def timeline(document: Mapping[str, Any], arm: str, number: int) -> Markup:
    """Milliseconds of every denoiser forward of one batch, coloured by the resolution it was computed at."""
    steps, milliseconds = document["steps"][arm], document["times"]["steps"][arm]
    sizes = sorted({tuple(step["resolution"] or ()) for step in steps}, reverse=True)
    name = f"timeline-{number}"
    with _drawing(name):
        figure = Figure(figsize=(7.6, 2.2))
        axes = figure.subplots()
        for order, size in enumerate(sizes):
            where = [i for i, step in enumerate(steps) if tuple(step["resolution"] or ()) == size]
            label = " x ".join(map(str, size)) or "answered without computing"
            heights = [milliseconds[i] for i in where]
            axes.bar(where, heights, width=0.8, color=_ROWS[1 + order % (len(_ROWS) - 1)], label=label)
        axes.set_title(textwrap.fill(f"{arm}: milliseconds of each denoiser forward, by latent size", 90))
        axes.set_xlabel("forward, in the order of the run")
        axes.grid(visible=False, axis="x")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _svg(
            figure, name, f"Milliseconds of each denoiser forward of {arm}; the figures are in the list below"
        )
