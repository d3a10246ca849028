"""The picture of the layers is drawn from the import graph, and no arrow points upwards."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_picture_is_current(architecture: ModuleType) -> None:
    """The same arrows; the numbers may lag by a tenth, so that not every new import makes work."""
    shown, found = architecture.read(architecture.PAGE.read_text("utf-8")), architecture.imports()
    remedy = "run python docs/architecture.py"
    assert shown.keys() == found.keys(), remedy
    assert shown == pytest.approx(found, rel=0.1, abs=2), remedy
    assert architecture.upward(found) == []


def test_an_upward_arrow_is_noticed(architecture: ModuleType) -> None:
    assert architecture.upward({("plugins", "host"): 1, ("host", "eval"): 1}) == [("host", "eval")]
    page = f"<!-- layers -->\n{architecture.drawn({('host', 'schedules'): 7})}<!-- /layers -->\n"
    assert architecture.read(page) == {("host", "schedules"): 7}


def test_no_statement_of_a_picture_ends_early(architecture: ModuleType) -> None:
    """Mermaid takes a semicolon for the end of a statement, and shows an error in the place of the picture."""
    blocks = re.findall(r"```mermaid\n(.*?)```", architecture.PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    assert [block for block in blocks if ";" in block] == []
