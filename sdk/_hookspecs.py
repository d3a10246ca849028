"""The whole plugin surface: the hooks a plugin may implement, and the markers.

Hooks are called while things are set up and once after a run, never inside a denoiser forward. The historic ones are
asked of every plugin once, whenever it is registered.
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
    """Offer techniques: call ``register(TechniqueClass)`` once for each."""


@hookspec(historic=True)
def hasten_register_adapters(register: Callable[[Adapter], None]) -> None:
    """Offer pipeline families: call ``register(adapter)`` once for each."""


@hookspec(historic=True)
def hasten_register_metrics(register: Callable[[str, Callable[..., Any], str], None]) -> None:
    """Offer quality metrics: call ``register(name, factory, summary)`` once for each."""


@hookspec(historic=True)
def hasten_register_models(register: Callable[[Model], None]) -> None:
    """Offer pipelines that ``hasten.load`` knows by name: call ``register(model)`` once for each."""


@hookspec
def hasten_register_commands(app: typer.Typer) -> None:
    """Add commands to the command line ``app``."""


@hookspec
def hasten_register_benchmarks(group: typer.Typer) -> None:
    """Add commands to ``group``, which is ``hasten bench``."""


@hookspec
def hasten_plan(plan: Plan) -> Iterable[Finding] | None:
    """Comment on ``plan`` with findings; one of severity ``error`` refuses the acceleration."""


@hookspec
def hasten_run_finished(report: Report) -> None:
    """See the ``report`` of an accelerated run, once per call of the user's pipeline (also of a failed one)."""


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
