"""``hasten presets``: every preset, for every kind of model or for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from hasten._cli import _options as options
from hasten._console import Console

if TYPE_CHECKING:
    from hasten._presets import Preset


__all__ = ["register"]

_HELP = """List the presets for one model, each with the measurement it is based on.

[bold]Examples[/]

  hasten presets mini/t2i-dit
  hasten presets ./my-flux --height 512 --width 512 --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("presets", help=_HELP)(_command)


def _command(
    model: options.ModelName = None,
    config: options.ConfigFile = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    as_json: options.Json = False,
) -> None:
    import hasten
    from hasten._cli._loading import load_quietly

    settings = options.configuration(config, None, None)
    model = options.choose_model(model, settings)
    call = options.call_arguments(model, settings, height=height, width=width, frames=frames)
    pipe = load_quietly(model, options.choose_place(settings, "cpu", None), call)
    found = hasten.presets(pipe, **call)
    if as_json:
        typer.echo(json.dumps([_plain(preset) for preset in found], indent=2))
        return
    table = Table(title=f"presets for {escape(model)}")
    for column in ("preset", "techniques", "based on"):
        table.add_column(column, overflow="fold")
    for preset in found:
        shown = [f"{name}: {_options(values)}" for name, values in _techniques(preset).items()]
        shown += [f"without {name}: {why}" for name, why in preset.left_out.items()]
        cells = ("\n".join(shown) or "plain: no technique helps here", preset.basis)
        table.add_row(f"{preset.name}\n[dim]{escape(preset.summary)}[/]", *map(escape, cells))
    Console().print(table)


def _techniques(preset: Preset) -> dict[str, dict[str, Any]]:
    return {e.name: e.options.model_dump(mode="json", exclude_unset=True) for e in preset.config.techniques}


def _options(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "defaults"


def _plain(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "summary": preset.summary,
        "techniques": _techniques(preset),
        "measured": preset.measured,
        "basis": preset.basis,
        "left_out": dict(preset.left_out),
    }
