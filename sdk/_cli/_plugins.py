"""``hasten plugins``: every technique that can be enabled, and every plugin that could not be loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from hasten._cli._describe import describe_default, describe_values, flatten
from hasten._console import Console, Table

if TYPE_CHECKING:
    from hasten._plugins import PluginRecord
    from hasten._technique import Technique

__all__ = ["register"]

_NAMED = 3
"""So many things of a kind are listed by name."""
_HELP = """List techniques with their distributions and plugins that failed to load, or the options of one technique.

[bold]Examples[/]

  hasten plugins
  hasten plugins bottleneck
  hasten plugins --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plugins", help=_HELP)(_command)


def _command(
    name: Annotated[str | None, typer.Argument(help="Show the options of this technique.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    from hasten._plugins import host

    plugins = host()
    if name is not None:
        _show_options(plugins.technique(name), as_json)
        return
    techniques = [
        {"technique": key, "what it does": cls.summary}
        for key, cls in sorted(plugins.registry.techniques.items())
    ]
    records = [_row(record) for record in plugins.plugins]
    broken = [_broken(record) for record in plugins.plugins if record.error]
    if as_json:
        typer.echo(json.dumps({"techniques": techniques, "plugins": records, "broken": broken}, indent=2))
        return
    console = Console()
    console.print(_table(techniques, "techniques"))
    console.print(_table(records, "plugins"))
    if broken:
        console.print(_table(broken, "broken plugins"))


def _row(record: PluginRecord) -> dict[str, Any]:
    status = "broken" if record.error else "blocked" if record.blocked else "loaded"
    return {
        "plugin": record.name,
        "from": f"{record.distribution} {record.version}".strip() or record.origin,
        "provides": _counted(record.provides),
        "status": status,
    }


def _broken(record: PluginRecord) -> dict[str, Any]:
    return {
        "plugin": record.name,
        "distribution": record.distribution or None,
        "version": record.version or None,
        "error": record.error,
    }


def _counted(provides: tuple[str, ...]) -> str:
    """Names, kind by kind; of a kind with many, their number: two dozen adapters would drown the table."""
    kinds: dict[str, list[str]] = {}
    for item in provides:
        kind, _, name = item.partition(" ")
        kinds.setdefault(kind, []).append(name)
    return ", ".join(
        f"{len(names)} {kind}s"
        if len(names) > _NAMED
        else f"{kind}{'s' * (len(names) > 1)} {', '.join(names)}"
        for kind, names in kinds.items()
    )


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    return table


def _show_options(chosen: type[Technique[Any]], as_json: bool) -> None:
    from hasten._options import options_of
    from hasten._plugins import host

    with host().culprit("technique", chosen.name).during("the schema of its options"):
        options = options_of(chosen.config_class)
        schema = options.json_schema()
    if as_json:
        typer.echo(json.dumps(schema, indent=2))
        return
    console = Console()
    for number, kind in enumerate(options.kinds):
        title = f"{chosen.name}: {chosen.summary}"
        if options.field:
            title = (
                f"{chosen.name} with {options.field}: {options.value(kind)}{'' if number else ' (default)'}"
            )
        console.print(_option_table(title, kind.model_json_schema()))


def _option_table(title: str, schema: dict[str, Any]) -> Table:
    table = Table("option", "meaning", title=escape(title), title_justify="left")
    for path, field in flatten(schema):
        default = describe_default(field)
        values = describe_values(field) + (f"; default {default}" if default else "")
        table.add_row(escape(path), Text.assemble(field.get("description", ""), "\n", (values, "dim")))
    return table
