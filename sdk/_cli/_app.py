"""The Typer application, its error handling and the commands that plugins add."""

from __future__ import annotations

from typing import Any

import typer
from hasten._errors import ConfigError, HastenError
from rich.console import Console
from typer.core import TyperGroup

__all__ = ["app", "main"]

_errors = Console(stderr=True, soft_wrap=True, highlight=False)


class _Group(TyperGroup):
    """Turns the exceptions of every command, built in or from a plugin, into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _complain(error)
            raise typer.Exit(2) from error
        except HastenError as error:
            _complain(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            _errors.print("[yellow]interrupted[/]")
            raise typer.Exit(130) from interrupt


def _complain(error: HastenError) -> None:
    _errors.print("[bold red]error:[/]", end=" ")
    _errors.print(str(error), markup=False)


app = typer.Typer(
    cls=_Group,
    name="hasten",
    help="Make an existing diffusion or visual-autoregressive pipeline faster, and see what it cost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from hasten import __version__

        typer.echo(__version__)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """Entry point of the ``hasten`` command."""
    from hasten._cli import _demo, _generate, _plan, _plugins
    from hasten._plugins import host

    for module in (_demo, _generate, _plan, _plugins):
        module.register(app)
    host().add_commands(app)
    app()
