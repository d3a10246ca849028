"""Conditions a comparison must meet, for the user's CI: ``speedup.low>=1.3``, ``mini_classifier.change.low>=-0.05``.

A gate is ``[ARM:]METRIC[.PART]>=VALUE`` (or ``<=``). It holds for every candidate, or for the one named. ``METRIC`` is
a measured metric, ``speedup`` (wall-clock, baseline over candidate), ``speedup_knee`` (knee over candidate),
``flops_ratio`` or ``seconds`` (per picture). ``PART`` is ``low`` or ``high`` (ends of the interval), ``change``
(against the baseline), ``change.low`` or ``change.high``; without it the figure itself. ``[ARM:]beats_fewer_steps``
holds for a candidate that won against plain sampling in the same time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.eval.compare.contest import BEATS
from hasten.extend import ConfigError, suggestion

__all__ = ["TIMED", "BeatsFewerSteps", "Gate", "parse_gates"]

#: Quantities that depend on how fast the machine was, and so differ from one run to the next.
TIMED = frozenset({"speedup", "speedup_knee", "seconds"})
_EFFICIENCY = (*sorted(TIMED), "flops_ratio")
_PARTS = ("value", "low", "high", "change", "change.low", "change.high")
_BEATS = re.compile(rf"\s*(?:(?P<arm>[^:<>=]+):)?\s*{BEATS}\s*")
_GATE = re.compile(
    r"\s*(?:(?P<arm>[^:<>=]+):)?\s*(?P<metric>\w+)(?:\.(?P<part>[\w.]+))?\s*(?P<sign>>=|<=)\s*(?P<bound>\S+)\s*"
)


@dataclass(frozen=True)
class Gate:
    """One condition, as the user wrote it and in its parts."""

    text: str
    arm: str | None
    metric: str
    part: str
    at_least: bool
    bound: float

    @property
    def timed(self) -> bool:
        """Whether the outcome depends on times."""
        return self.metric in TIMED

    def check(self, arm: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Outcome for one candidate; a figure that doesn't exist or is not finite fails the gate.

        Args:
            arm: name of the candidate.
            row: metric -> its figure, as the report holds it.
        """
        where: Any = row.get(self.metric)
        for step in {
            "value": "value.value",
            "low": "value.low",
            "high": "value.high",
            "change": "change.value",
        }.get(self.part, self.part).split("."):
            where = where.get(step) if isinstance(where, Mapping) else None
        held = where is not None and (where >= self.bound if self.at_least else where <= self.bound)
        return {"gate": self.text, "arm": arm, "measured": where, "held": bool(held)}


@dataclass(frozen=True)
class BeatsFewerSteps:
    """The condition to have won against plain sampling in the same time."""

    text: str
    arm: str | None

    timed: ClassVar[bool] = False
    """The pictures decide."""

    def check(self, arm: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Outcome for one candidate; without a control to beat it is missed. Arguments as of :meth:`Gate.check`."""
        outcome = row.get(BEATS)
        return {"gate": self.text, "arm": arm, "measured": outcome, "held": outcome == "won"}


def parse_gates(
    texts: Collection[str], metrics: Collection[str], arms: Collection[str]
) -> list[Gate | BeatsFewerSteps]:
    """Understand the gates before any work is spent.

    Args:
        texts: as the user wrote them.
        metrics: names of the metrics that will be measured.
        arms: names of the candidates.

    Raises:
        ConfigError: shows the syntax, or names what does not exist.
    """
    return [_parse(text, metrics, arms) for text in texts]


def _parse(text: str, metrics: Collection[str], arms: Collection[str]) -> Gate | BeatsFewerSteps:
    if beats := _BEATS.fullmatch(text):
        return BeatsFewerSteps(text, _named(text, beats["arm"], arms))
    match = _GATE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--gate {text}: write METRIC>=VALUE or METRIC<=VALUE, for example speedup.low>=1.3, or {BEATS}"
        )
    known = [*metrics, *_EFFICIENCY]
    metric, part = match["metric"], match["part"] or "value"
    if metric not in known:
        raise ConfigError(
            f"--gate {text}: {metric!r} is not measured{suggestion(metric, known)} Measured: {', '.join(known)}."
        )
    if part not in _PARTS:
        raise ConfigError(
            f"--gate {text}: a figure has {', '.join(_PARTS)}, not {part!r}{suggestion(part, _PARTS)}"
        )
    arm = _named(text, match["arm"], arms)
    try:
        bound = float(match["bound"])
    except ValueError as error:
        raise ConfigError(f"--gate {text}: {match['bound']!r} is not a number") from error
    return Gate(text, arm, metric, part, match["sign"] == ">=", bound)


def _named(text: str, arm: str | None, arms: Collection[str]) -> str | None:
    if arm is None:
        return None
    if arm.strip() not in arms:
        raise ConfigError(
            f"--gate {text}: no configuration is called {arm.strip()!r}; there are {', '.join(arms)}"
        )
    return arm.strip()
