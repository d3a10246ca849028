"""``hasten schema``: what editors check configuration files with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hasten._generation import prepare_folder
from hasten._records import write_atomically
from hasten._shown import printable

__all__ = ["register"]

_HELP = """Print the JSON schema of configuration files, with every option of every installed technique.

Editors complete and check a YAML file that begins with this line (VS Code and others, by yaml-language-server):

  # yaml-language-server: $schema=hasten.schema.json

[bold]Example[/]

  hasten schema --out hasten.schema.json
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("schema", help=_HELP)(_command)


def _command(out: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None) -> None:
    from hasten._schema import config_schema

    text = json.dumps(config_schema(), indent=2)
    if out is None:
        typer.echo(text)
        return
    prepare_folder(out.parent)
    write_atomically(out, f"{text}\n".encode())
    typer.echo(
        f"{printable(str(out))}: begin a YAML file beside it with  # yaml-language-server: $schema={out.name}"
    )
