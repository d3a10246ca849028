"""Charts as inline SVG whose colours are CSS variables, so that one drawing serves light, dark and print."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from hasten.eval.report.drawing import PAGE, SHAPES, drawing, interval_ends, svg

__all__ = ["Mark", "marks", "pareto", "timeline"]


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
        marker, filled, hollow = SHAPES[number % len(SHAPES)]
        control = arm["role"] == "control"
        found[arm["name"]] = Mark(number % len(PAGE.rows), marker, hollow if control else filled, control)
    return found


def pareto(document: Mapping[str, Any], metric: str) -> Markup:
    """Speed-up against one metric, every row a point with both intervals; controls are hollow."""
    about = document["metrics"][metric]
    name = f"pareto-{metric}"
    with drawing(name):
        figure = Figure(figsize=(3.6, 2.7))
        axes = figure.subplots()
        for arm, mark in marks(document).items():
            row = document["figures"][arm].get(metric)
            if row is None:
                continue
            speed, value = document["times"]["arms"][arm]["speedup"]["value"], row["value"]
            colour = PAGE.rows[mark.colour]
            axes.errorbar(
                [speed["value"]],
                [value["value"]],
                xerr=interval_ends(speed),
                yerr=interval_ends(value),
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
        return svg(figure, name, f"Speed against {metric}; the figures are in the table of all rows")


def timeline(document: Mapping[str, Any], arm: str, number: int) -> Markup:
    """Milliseconds of every denoiser forward of one batch, coloured by the resolution it was computed at."""
    steps, milliseconds = document["steps"][arm], document["times"]["steps"][arm]
    sizes = sorted({tuple(step["resolution"] or ()) for step in steps}, reverse=True)
    name = f"timeline-{number}"
    with drawing(name):
        figure = Figure(figsize=(7.6, 2.2))
        axes = figure.subplots()
        for order, size in enumerate(sizes):
            where = [i for i, step in enumerate(steps) if tuple(step["resolution"] or ()) == size]
            label = " x ".join(map(str, size)) or "answered without computing"
            heights = [milliseconds[i] for i in where]
            axes.bar(
                where, heights, width=0.8, color=PAGE.rows[1 + order % (len(PAGE.rows) - 1)], label=label
            )
        axes.set_title(textwrap.fill(f"{arm}: milliseconds of each denoiser forward, by latent size", 90))
        axes.set_xlabel("forward, in the order of the run")
        axes.grid(visible=False, axis="x")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return svg(
            figure, name, f"Milliseconds of each denoiser forward of {arm}; the figures are in the list below"
        )
