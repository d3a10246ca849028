"""Public modules write each of their names once, in a stub that type checkers and :func:`lazy_names` read."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = (
    "hasten",
    "hasten.extend",
    "hasten.commands",
    "hasten.files",
    "hasten.weights",
    "hasten.pipelines.var",
    "hasten.pipelines.infinity",
)


@pytest.mark.parametrize("name", MODULES)
def test_every_name_of_a_stub_exists_and_is_exported_once(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    body = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text("utf-8")).body
    aliases = [alias for part in body if isinstance(part, ast.ImportFrom) for alias in part.names]
    assert [alias.name for alias in aliases if alias.asname != alias.name] == []  # what a checker re-exports
    assert sorted(alias.name for alias in aliases) == module.__all__
    assert {*module.__all__} <= {*dir(module)}
    assert all(getattr(module, listed) is not None for listed in module.__all__)


def test_an_unknown_name_is_refused_with_the_module_it_was_looked_for_in() -> None:
    import hasten.extend

    with pytest.raises(AttributeError, match=r"module 'hasten\.extend' has no attribute 'Tecnique'"):
        hasten.extend.Tecnique  # noqa: B018


def test_importing_the_public_modules_imports_no_framework() -> None:
    code = (
        f"import sys, {', '.join(MODULES[:5])}; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
