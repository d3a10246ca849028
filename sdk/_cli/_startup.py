"""What the command line does before anything else, so that help and listings answer at once."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["postpone", "quieten"]


class _Postponed(ModuleType):
    """Stands in for a module until something of it is used.

    ``importlib.util.LazyLoader`` does not do: the second ``import`` of a module already reads its ``__spec__``, which
    makes it load.
    """

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        for key, value in vars(module).items():
            self.__dict__.setdefault(key, value)  # next time without asking
        return getattr(module, name)


class _Present(MetaPathFinder, Loader):
    """Keeps ``import name.part`` from executing ``name.part`` twice where it is the first use of a postponed ``name``.

    The import system asks ``name`` for its ``__path__``, which loads it and with it the part, and then loads the part
    again: torch's extension modules abort the process when that happens.
    """

    def __init__(self, name: str) -> None:
        self._parts = f"{name}."

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if not fullname.startswith(self._parts) or fullname not in sys.modules:
            return None
        return ModuleSpec(fullname, self, loader_state=sys.modules[fullname].__spec__)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def postpone(name: str) -> None:
    """Make ``import name`` free: the module is executed when something of it is first used.

    Torch takes longer to import than all of ``hasten``, and neither help nor listings use it.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        sys.modules[name] = _Postponed(name)
        sys.modules[name].__spec__ = spec
        sys.meta_path.insert(0, _Present(name))


def quieten() -> None:
    """Keep to themselves what the libraries report of packages they do without, and of their own deprecations.

    What goes wrong still comes as an exception; a variable that the user has set wins.
    """
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    if sys.warnoptions:
        return
    libraries = r"(torch|diffusers|transformers|huggingface_hub|accelerate|torchmetrics)(\.|$)"
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=libraries)
    logging.getLogger("torch").setLevel(logging.ERROR)
