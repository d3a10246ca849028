"""A cache that never reuses changes nothing; one that does is active, restored, and dropped with its run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, baseline

import hasten
from hasten._fingerprint import fingerprint

EXACT: dict[str, dict[str, Any]] = {
    "first_block": {"threshold": 0.0},
    "taylorseer": {"interval": 1, "warmup": 0},
    "magnitude": {"longest": 0},
    "pyramid": {"spatial": 1, "cross": 1, "start": 1.0, "stop": 0.0},
    "faster": {"spatial": 1, "unconditional": 1},
}
ACTIVE: dict[str, dict[str, Any]] = {
    "first_block": {"threshold": 10.0},
    "taylorseer": {"interval": 3, "warmup": 1},
    "magnitude": {"threshold": 10.0, "warmup": 0.0},
    "pyramid": {"spatial": 3, "start": 1.0, "stop": 0.0},
    "faster": {"spatial": 3, "unconditional": 3, "start": 1.0},
}
def refusal(pipe: Any, kind: str) -> str | None:
    try:
        plan = hasten.plan(pipe, {"cache": {"kind": kind}})
    except hasten.HastenError as error:
        return str(error)
    return next((f.message for f in plan.findings if f.severity == "error"), None)
if __name__ == "__main__":
    pass
