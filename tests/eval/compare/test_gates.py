"""Gates: what they measure, when they hold, and that a wrong one is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from hasten._errors import ConfigError
from hasten.eval.compare.gates import parse_gates

ROW: dict[str, Any] = {
    "psnr": {"value": {"value": 30.0, "low": 29.0, "high": 31.0}, "change": None},
    "error": {
        "value": {"value": 0.2, "low": 0.1, "high": 0.3},
        "change": {"value": 0.05, "low": -0.1, "high": 0.2},
    },
    "speedup": {"value": {"value": 1.5, "low": 1.2, "high": None}},
}


def held(text: str) -> bool:
    (gate,) = parse_gates([text], ["psnr", "error"], ["fast", "very fast"])
    return bool(gate.check("fast", ROW)["held"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("psnr>=30", True),
        ("psnr >= 30.01", False),
        ("psnr.low>=29", True),
        ("psnr.high<=30.9", False),
        ("error<=0.2", True),
        ("error.change<=0.05", True),
        ("error.change.high<=0.1", False),
        ("speedup.low>=1.2", True),
        ("fast:speedup>=1.6", False),
        ("very fast:error<=1e0", True),
        ("psnr.change>=-5", False),  # a figure that doesn't exist
        ("speedup.high<=99", False),  # an interval without an end
        ("psnr>=nan", False),
    ],
)
def test_a_gate_holds_or_not(text: str, expected: bool) -> None:
    assert held(text) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psnr>30", "METRIC>=VALUE"),
        ("psnr", "METRIC>=VALUE"),
        ("psnrr>=3", "did you mean 'psnr'"),
        ("psnr.lower>=3", "did you mean 'low'"),
        ("psnr>=high", "not a number"),
        ("slow:psnr>=3", "no configuration is called 'slow'"),
    ],
)
def test_a_wrong_gate_is_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        held(text)


def test_gates_on_times_are_told_from_the_others() -> None:
    gates = parse_gates(["psnr>=1", "speedup>=1", "seconds<=1", "flops_ratio>=1"], ["psnr"], ["fast"])
    assert [gate.timed for gate in gates] == [False, True, True, False]
