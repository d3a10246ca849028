"""Examples in docstrings give what they say they give."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "sdk": "hasten",
    **{name: f"hasten.{name}" for name in ("schedules", "pipelines", "plugins", "eval")},
}


def _module(folder: str, file: Path) -> str:
    parts = file.relative_to(ROOT / folder).with_suffix("").parts
    return ".".join((FOLDERS[folder], *(part for part in parts if part != "__init__")))


MODULES = [
    _module(folder, file)
    for folder in FOLDERS
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "\n    >>> " in (text := file.read_text("utf-8")) or "\n>>> " in text
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples() -> None:
    assert {"hasten", "hasten.schedules.noise", "hasten._swap"} <= {*MODULES}
