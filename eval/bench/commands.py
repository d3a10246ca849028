"""The command group ``hasten bench``, to which plugins add their benchmarks."""

from __future__ import annotations

import typer

from hasten.commands import host
from hasten.eval.bench import evaluation
from hasten.eval.bench.peers import command as peers
from hasten.extend import hookimpl

__all__ = ["hasten_register_benchmarks", "hasten_register_commands"]


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Add the group with the benchmarks of all plugins."""
    group = typer.Typer(
        help="Time parts of hasten on this machine, each compared with its plain alternative.",
        no_args_is_help=True,
    )
    host().add_benchmarks(group)
    app.add_typer(group, name="bench")


@hookimpl
def hasten_register_benchmarks(group: typer.Typer) -> None:
    """Add the benchmarks of evaluation."""
    evaluation.register(group)
    peers.register(group)
