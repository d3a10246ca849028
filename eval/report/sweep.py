"""The picture of quality over time: for a page, and as PNG and SVG for everybody else."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib.transforms import Bbox

from hasten.eval.report.drawing import PAGE, PRINT, SHAPES, Palette, drawing, interval_ends, svg
from hasten.eval.sweep.points import Curve, Point, Quantity, dominated
from hasten.files import write_atomically

__all__ = ["draw_for_page", "save_pictures"]

_SIZE = (4.8, 3.3)
"""Inches without the legend, so that text stays readable in a page that is 390 pixels wide."""
_DOTS = 200
"""Per inch, of the PNG."""
_LABEL = 7.5
_AROUND = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a label may stand, seen from its point."""


def draw_for_page(curves: Sequence[Curve], quantity: Quantity) -> Markup:
    """The picture as inline SVG in the colours of the page."""
    name = f"sweep-{quantity.metric}"
    with drawing(name):
        figure = _figure(curves, quantity, PAGE)
        axes = f"{quantity.axis} against {quantity.metric}"
        return svg(figure, name, f"{axes}; the figures are in the table of the settings")


def save_pictures(curves: Sequence[Curve], quantity: Quantity, folder: Path) -> list[Path]:
    """Write ``sweep-METRIC.png`` and ``sweep-METRIC.svg``.

    Raises:
        HastenError: if they can't be written.
    """
    written = []
    for suffix, options in (("png", {"dpi": _DOTS}), ("svg", {"metadata": {"Date": None}})):
        with drawing(f"sweep-{quantity.metric}", PRINT):
            buffer = io.BytesIO()
            figure = _figure(curves, quantity, PRINT)
            figure.savefig(buffer, format=suffix, bbox_inches="tight", **options)
        written.append(folder / f"sweep-{quantity.metric}.{suffix}")
        write_atomically(written[-1], buffer.getvalue())
    return written


def _figure(curves: Sequence[Curve], quantity: Quantity, palette: Palette) -> Figure:
    metric = quantity.metric
    shown = [curve for curve in curves if any(metric in point.figures for point in curve.points)]
    grey = dominated(shown, metric, higher_is_better=quantity.higher_is_better)
    figure = Figure(figsize=_SIZE)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    for number, curve in enumerate(shown):
        _draw_curve(axes, curve, metric, number, grey, palette)
    _name_axes(axes, quantity, palette)
    handles = [_handle(curve, number, palette) for number, curve in enumerate(shown)]
    if grey:
        handles.append(Line2D([], [], marker="o", color=palette.faint, linestyle="", alpha=0.6, markersize=4))
    names = [curve.name for curve in shown] + (["another point is as fast and better"] if grey else [])
    figure.legend(
        handles, names, loc="upper left", bbox_to_anchor=(0.02, -0.01), frameon=False, fontsize=8, ncols=1
    )
    _write_labels(figure, axes, shown, metric, grey)
    return figure


def _draw_curve(
    axes: Axes, curve: Curve, metric: str, number: int, grey: Collection[str], palette: Palette
) -> None:
    colour = palette.rows[number % len(palette.rows)]
    marker = SHAPES[number % len(SHAPES)][0]
    points = [point for point in curve.points if metric in point.figures]
    places = [(point.seconds["value"], point.figures[metric]["value"]) for point in points]
    if curve.joined:
        axes.plot(*zip(*places), color=colour, linewidth=1.0, alpha=0.35, zorder=1)
    for point, (seconds, value) in zip(points, places):
        beaten = point.name in grey
        axes.errorbar(
            [seconds],
            [value],
            xerr=interval_ends(point.seconds),
            yerr=interval_ends(point.figures[metric]),
            fmt=marker,
            markersize=4 if beaten else 6,
            linewidth=0.8,
            color=palette.faint if beaten else colour,
            alpha=0.45 if beaten else 1.0,
            markerfacecolor="none" if curve.plain and not beaten else None,
            zorder=2 if beaten else 3,
        )


def _handle(curve: Curve, number: int, palette: Palette) -> Line2D:
    colour = palette.rows[number % len(palette.rows)]
    fill = "none" if curve.plain else colour
    return Line2D(
        [], [], color=colour, marker=SHAPES[number % len(SHAPES)][0], markerfacecolor=fill, markersize=6
    )


def _name_axes(axes: Axes, quantity: Quantity, palette: Palette) -> None:
    unit = f", {quantity.unit}" if quantity.unit else ""
    better = "higher" if quantity.higher_is_better else "lower"
    change = ", change from the reference" if quantity.change else ""
    axes.set_title(textwrap.fill(f"{quantity.metric}{unit}{change} ({better} is better)", 60))
    axes.set_xlabel(quantity.axis)
    if quantity.change and quantity.margin is not None:
        place = -quantity.margin if quantity.higher_is_better else quantity.margin
        axes.axhline(place, color=palette.faint, linestyle=(0, (4, 3)), linewidth=1.0, zorder=1)
    axes.margins(0.08)
    low, high = axes.get_xlim()
    # Decades alone would leave most sweeps with a single number on the axis.
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if high / low > 3 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _write_labels(
    figure: Figure, axes: Axes, curves: Sequence[Curve], metric: str, grey: Collection[str]
) -> None:
    """Label the points that nobody beats, each where it covers nothing; one without room has none."""
    figure.draw_without_rendering()
    taken = list(_markers(figure, axes, curves, metric))
    inside = axes.get_window_extent()
    points = [point for curve in curves for point in curve.points if metric in point.figures]
    for point in (point for point in points if point.name not in grey and point.label):
        for place in _places(point):
            text = axes.annotate(
                point.label,
                (point.seconds["value"], point.figures[metric]["value"]),
                xytext=place,
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=_LABEL,
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) and _within(box, inside):
                taken.append(box.padded(1))
                break
            text.remove()


def _places(point: Point) -> Iterator[tuple[float, float]]:
    """Offsets of a label in points, the nearest first."""
    width = 2.2 * len(point.label)
    for reach in (1.0, 1.8, 2.6):
        for x, y in _AROUND:
            yield x * (6 * reach + width), y * 9 * reach


def _within(box: Bbox, frame: Bbox) -> bool:
    return bool(box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1)


def _markers(figure: Figure, axes: Axes, curves: Sequence[Curve], metric: str) -> Iterator[Bbox]:
    """What labels must not cover: every marker, and the bars of its intervals."""
    half = 4 * figure.dpi / 72
    for curve in curves:
        for point in curve.points:
            if metric not in point.figures:
                continue
            seconds, value = point.seconds, point.figures[metric]
            centre = axes.transData.transform((seconds["value"], value["value"]))
            yield Bbox.from_extents(*(centre - half), *(centre + half))
            for ends in (
                [(seconds["value"], _end(value, "low")), (seconds["value"], _end(value, "high"))],
                [(_end(seconds, "low"), value["value"]), (_end(seconds, "high"), value["value"])],
            ):
                (x0, y0), (x1, y1) = axes.transData.transform(ends)
                yield Bbox.from_extents(x0 - 1, y0 - 1, x1 + 1, y1 + 1)


def _end(estimate: Mapping[str, Any], side: str) -> float:
    return float(estimate["value"] if estimate[side] is None else estimate[side])
