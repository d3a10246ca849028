"""Names of a module that are imported when they are first used, so that importing the module stays light.

Each name is written once, in the module's stub (``extend.pyi`` beside ``extend.py``). Type checkers and editors read
it; so does :func:`lazy_names`, as the package ``lazy_loader`` does, which however serves packages alone.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["lazy_names"]


def lazy_names(module: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` for a module whose stub holds imports alone.

    Args:
        module: its ``__name__``.
    """
    origin = sys.modules[module].__file__
    assert origin is not None
    home_of = dict(_imports(Path(origin).with_suffix(".pyi")))

    def get(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home_of[name]), name)
        setattr(sys.modules[module], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *home_of})

    return get, list_names, sorted(home_of)


def _imports(stub: Path) -> Iterator[tuple[str, str]]:
    """Name and home of every ``from home import name as name``."""
    for statement in ast.parse(stub.read_text("utf-8")).body:
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            yield from ((alias.name, statement.module) for alias in statement.names)
