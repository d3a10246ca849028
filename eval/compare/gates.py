"""Conditions a comparison must meet, for the user's CI: ``speedup.low>=1.3``, ``mini_classifier.change.low>=-0.05``.

A gate is ``[ARM:]METRIC[.PART]>=VALUE`` (or ``<=``). It holds for every candidate, or for the one named. ``METRIC`` is
a measured metric, ``speedup`` (wall-clock, baseline over candidate), ``flops_ratio`` or ``seconds`` (per picture).
``PART`` is ``low`` or ``high`` (ends of the interval), ``change`` (against the baseline), ``change.low`` or
``change.high``; without it the figure itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hasten._errors import ConfigError, suggestion

__all__ = ["TIMED", "Gate", "parse_gates"]

#: Quantities that depend on how fast the machine was, and so differ from one run to the next.
TIMED = frozenset({"speedup", "seconds"})
_EFFICIENCY = (*sorted(TIMED), "flops_ratio")
_PARTS = ("value", "low", "high", "change", "change.low", "change.high")
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


def parse_gates(texts: Collection[str], metrics: Collection[str], arms: Collection[str]) -> list[Gate]:
    """Understand the gates before any work is spent.

    Args:
        texts: as the user wrote them.
        metrics: names of the metrics that will be measured.
        arms: names of the candidates.

    Raises:
        ConfigError: shows the syntax, or names what does not exist.
    """
    return [_parse(text, metrics, arms) for text in texts]


def _parse(text: str, metrics: Collection[str], arms: Collection[str]) -> Gate:
    match = _GATE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--gate {text}: write METRIC>=VALUE or METRIC<=VALUE, for example speedup.low>=1.3"
        )
    known = [*metrics, *_EFFICIENCY]
    metric, part, arm = match["metric"], match["part"] or "value", match["arm"]
    if metric not in known:
        raise ConfigError(
            f"--gate {text}: {metric!r} is not measured{suggestion(metric, known)} Measured: {', '.join(known)}."
        )
    if part not in _PARTS:
        raise ConfigError(
            f"--gate {text}: a figure has {', '.join(_PARTS)}, not {part!r}{suggestion(part, _PARTS)}"
        )
    if arm is not None and arm.strip() not in arms:
        raise ConfigError(
            f"--gate {text}: no configuration is called {arm.strip()!r}; there are {', '.join(arms)}"
        )
    try:
        bound = float(match["bound"])
    except ValueError as error:
        raise ConfigError(f"--gate {text}: {match['bound']!r} is not a number") from error
    return Gate(text, arm.strip() if arm is not None else None, metric, part, match["sign"] == ">=", bound)
