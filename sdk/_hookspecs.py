"""Hook specifications of plugins, and their markers.

Hooks are called during set-up and after a call, never inside a denoiser forward. Historic hooks are called once for
every plugin, when it is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer

    from hasten._adapters.base import Adapter
    from hasten._models import Model
    from hasten._plan import Plan
    from hasten._report import Report
    from hasten._technique import Finding, Technique

__all__ = ["HOOKS", "PROJECT", "hookimpl", "hookspec"]

PROJECT = "hasten"
"""pluggy project name, and the entry-point group that external plugins use."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorator that marks a function of a plugin as the implementation of the hook of the same name."""


@hookspec(historic=True)
def hasten_register_techniques(register: Callable[[type[Technique[Any]]], None]) -> None:
    """Add techniques: call ``register(TechniqueClass)`` once for each."""


@hookspec(historic=True)
def hasten_register_adapters(register: Callable[[Adapter], None]) -> None:
    """Add pipeline families: call ``register(adapter)`` once for each."""


@hookspec(historic=True)
def hasten_register_metrics(register: Callable[[str, Callable[..., Any], str], None]) -> None:
    """Add quality metrics: call ``register(name, factory, summary)`` once for each."""


@hookspec(historic=True)
def hasten_register_models(register: Callable[[Model], None]) -> None:
    """Add pipelines that ``hasten.load`` loads by name: call ``register(model)`` once for each."""


@hookspec
def hasten_register_commands(app: typer.Typer) -> None:
    """Add commands to the command line ``app``."""


@hookspec
def hasten_register_benchmarks(group: typer.Typer) -> None:
    """Add commands to ``group``, which is ``hasten bench``."""


@hookspec
def hasten_plan(plan: Plan) -> Iterable[Finding] | None:
    """Return findings about ``plan``; one of severity ``error`` refuses the acceleration."""


@hookspec
def hasten_run_finished(report: Report) -> None:
    """Receive the ``report`` of a pipeline call, once per call of the user, also after a failed one."""


HOOKS = (
    hasten_register_techniques,
    hasten_register_adapters,
    hasten_register_metrics,
    hasten_register_models,
    hasten_register_commands,
    hasten_register_benchmarks,
    hasten_plan,
    hasten_run_finished,
)
"""Every hook specification."""
