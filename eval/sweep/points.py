"""Settings as points of time and quality, and which of them nobody should choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Curve", "Point", "Quantity", "dominated", "sweep_fields"]

Fields = Mapping[str, Any]
"""An estimate as JSON: ``value``, ``low`` and ``high`` among others."""


@dataclass(frozen=True)
class Point:
    """One setting.

    Args:
        name: of the setting, unique in a picture.
        label: what is written beside it: the steps, or the value of the dial.
        seconds: seconds a picture, an estimate.
        figures: metric -> its figure, an estimate.
        facts: whatever else is told of it: steps, solver, configuration.
    """

    name: str
    label: str
    seconds: Fields
    figures: Mapping[str, Fields]
    facts: Fields = field(default_factory=dict)


@dataclass(frozen=True)
class Quantity:
    """What stands on the axes of one picture.

    Args:
        metric: name of the quality, upright.
        higher_is_better: its direction.
        unit: of it; empty for none.
        axis: what stands on the level axis.
        change: whether the figures are differences to the reference.
        margin: largest tolerated loss, drawn as a line among differences.
    """

    metric: str
    higher_is_better: bool
    unit: str = ""
    axis: str = "seconds a picture"
    change: bool = False
    margin: float | None = None


@dataclass(frozen=True)
class Curve:
    """Points of one kind, in order of the dial, which a line joins.

    Args:
        name: in the legend.
        points: from the most careful to the boldest; several.
        plain: whether it is sampling without any technique.
        joined: whether a line goes from point to point.
    """

    name: str
    points: tuple[Point, ...]
    plain: bool = False
    joined: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Fields) -> Curve:
        """The inverse of :meth:`to_dict`."""
        return cls(
            fields["name"],
            tuple(Point(**point) for point in fields["points"]),
            fields["plain"],
            fields["joined"],
        )


def sweep_fields(curves: Sequence[Curve], quantities: Sequence[Quantity], **more: Any) -> dict[str, Any]:
    """What a report and a JSON file hold of a sweep: ``curves``, ``quantities``, ``dominated`` and ``more``."""
    return {
        "curves": [curve.to_dict() for curve in curves],
        "quantities": [asdict(quantity) for quantity in quantities],
        "dominated": {
            q.metric: sorted(dominated(curves, q.metric, higher_is_better=q.higher_is_better))
            for q in quantities
        },
        **more,
    }


def dominated(curves: Sequence[Curve], metric: str, *, higher_is_better: bool) -> frozenset[str]:
    """Names of the points that another one beats: no slower and no worse by ``metric``, and better in one of the two.

    By the estimates themselves, not their intervals: a point that is greyed may still be as good as its neighbour.
    """
    sign = 1.0 if higher_is_better else -1.0
    at = {
        point.name: (point.seconds["value"], sign * point.figures[metric]["value"])
        for curve in curves
        for point in curve.points
        if metric in point.figures
    }
    return frozenset(
        name
        for name, (seconds, value) in at.items()
        if any(
            other <= seconds and quality >= value and (other, quality) != (seconds, value)
            for other, quality in at.values()
        )
    )
