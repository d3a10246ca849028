"""The command group ``hasten bench``. A new benchmark is a module with ``register(group)``, named in ``_MODULES``."""

from __future__ import annotations

from importlib import import_module

import typer

from hasten._hookspecs import hookimpl

__all__ = ["hasten_register_commands"]

_MODULES = ("hasten.eval.bench.attention", "hasten.eval.bench.evaluation")


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Add the group with all of its benchmarks."""
    group = typer.Typer(
        help="Time parts of hasten on this machine, each beside its plain alternative.", no_args_is_help=True
    )
    for module in _MODULES:
        import_module(module).register(group)
    app.add_typer(group, name="bench")
