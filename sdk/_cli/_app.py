"""The Typer application, its error handling and the commands that plugins add."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

from hasten._cli._contributions import Contributions
from hasten._cli._mistakes import explain
from hasten._cli._startup import postpone, quieten
from hasten._console import Console
from hasten._culprit import Culprit
from hasten._errors import ConfigError, HastenError, PluginError

if TYPE_CHECKING:
    from hasten._plugins import PluginRecord

__all__ = ["build_app", "main"]

_errors = Console(stderr=True, soft_wrap=True, highlight=False)


class _Group(TyperGroup):
    """Turns the exceptions of every command, built in or from a plugin, into messages and exit codes."""

    owners: ClassVar[Mapping[str, PluginRecord]] = {}
    """Whose a command is, where it comes from an external plugin."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            _tidy(command)

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        _hide_values(params)  # here, because the options of completion are added to a finished group
        return params

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
        except BaseException as error:
            if isinstance(error, ValueError) and (refusal := explain(error)) is not None:
                _complain(refusal)
                raise typer.Exit(2) from error
            plugin = self.owners.get(ctx.invoked_subcommand)
            if plugin is None or _ends_command(error):
                raise
            _complain(_failure(plugin, ctx.invoked_subcommand, error))
            raise typer.Exit(1) from error


def _ends_command(error: BaseException) -> bool:
    """Whether a command ends on purpose like this: with an exit code, or with a message about its usage."""
    return isinstance(error, (SystemExit, typer.Abort)) or isinstance(getattr(error, "exit_code", None), int)


def _failure(plugin: PluginRecord, command: str, error: BaseException) -> HastenError:
    try:
        with Culprit(f"plugin {plugin}").during(f"its command {command!r}"):
            raise error
    except PluginError as named:
        return named


def _hide_values(options: Iterable[Any]) -> None:
    """A switch takes no value, so help shows none beside it: ``--json``, not ``--json <bool>``."""
    for option in options:
        if getattr(option, "is_bool_flag", False) and option.metavar is None:
            option.metavar = ""


def _tidy(command: Any) -> None:
    _hide_values([*command.params, command.get_help_option(typer.Context(command))])
    for inner in getattr(command, "commands", {}).values():
        _tidy(inner)


def _complain(error: HastenError | str) -> None:
    _errors.print("[bold red]error:[/]", end=" ")
    _errors.print(str(error), markup=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from hasten import __version__

        typer.echo(__version__)
        raise typer.Exit


def build_app() -> typer.Typer:
    """The application with all commands, those of plugins included."""
    from hasten._cli import _generate, _plan, _plugins, _presets, _schema
    from hasten._plugins import host

    class Group(_Group):
        """Of this application."""

    app = typer.Typer(
        cls=Group,
        name="hasten",
        help="Make an existing diffusion or visual-autoregressive pipeline faster, and measure the effect on quality.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for module in (_generate, _plan, _plugins, _presets, _schema):
        module.register(app)
    contributions = Contributions(app)
    Group.owners = contributions.owners
    host().add_commands(app, contributions)
    return app


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Global options."""


def main() -> None:
    """Entry point of the ``hasten`` command."""
    quieten()
    postpone("torch")
    try:
        app = build_app()
    except KeyboardInterrupt:
        _errors.print("[yellow]interrupted[/]")
        sys.exit(130)
    app()
