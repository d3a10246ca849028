"""Fixtures of the adapter tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from families import FAMILIES  # noqa: E402
from observation import Observation, observe  # noqa: E402


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def observed(family: str) -> Observation:
    return observe(family)
