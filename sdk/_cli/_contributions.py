"""What plugins add to the command line: taken as a whole or not at all, and never in the place of something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from typer.main import get_group

from hasten._errors import PluginError

if TYPE_CHECKING:
    from typer.models import CommandInfo, TyperInfo

    from hasten._plugins import PluginRecord

__all__ = ["Contributions"]


class Contributions:
    """Commands of external plugins.

    Args:
        app: what they are added to; commands that it has are not given up.
    """

    def __init__(self, app: typer.Typer) -> None:
        self._app = app
        self.owners: dict[str, PluginRecord] = {}
        """Whose a command is, by its name; built-in ones are not listed."""

    @contextmanager
    def __call__(self, plugin: PluginRecord) -> Iterator[None]:
        """Around the part of one plugin, which is undone if the block or a check raises.

        Raises:
            PluginError: a command has a name that is taken, or something that was there was replaced.
            Exception: a command cannot be built, for the reason that Typer gives.
        """
        if plugin.origin == "built-in":
            yield
            return
        app = self._app
        commands, groups, callback = (
            list(app.registered_commands),
            list(app.registered_groups),
            app.registered_callback,
        )
        try:
            yield
            self._claim(plugin, commands, groups, callback)
        except BaseException:
            app.registered_commands[:], app.registered_groups[:] = commands, groups
            app.registered_callback = callback
            raise

    def _claim(
        self,
        plugin: PluginRecord,
        commands: list[CommandInfo],
        groups: list[TyperInfo],
        callback: TyperInfo | None,
    ) -> None:
        app = self._app
        now = (app.registered_commands[: len(commands)], app.registered_groups[: len(groups)])
        if now != (commands, groups) or app.registered_callback is not callback:
            raise PluginError("changes existing commands or global options; a plugin may only add commands")
        taken = _names(commands, groups)
        for name in _names(app.registered_commands[len(commands) :], app.registered_groups[len(groups) :]):
            if name in taken:
                owner = f"plugin {self.owners[name]}" if name in self.owners else "hasten itself"
                raise PluginError(f"adds a command {name!r}, which already exists in {owner}; rename it")
            self.owners[name] = plugin


def _names(commands: list[CommandInfo], groups: list[TyperInfo]) -> list[str]:
    """Names of the finished commands."""
    alone = typer.Typer()
    alone.callback()(_nothing)
    alone.registered_commands, alone.registered_groups = commands, groups
    return list(get_group(alone).commands)


def _nothing() -> None:
    """Keeps a Typer with a single command a group."""
