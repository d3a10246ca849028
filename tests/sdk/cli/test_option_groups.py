"""Options declared once, as the fields of a dataclass, and shared by commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from hasten.commands import with_option_groups

Name = Annotated[str, typer.Argument(help="A name.")]


@dataclass(frozen=True)
class Training:
    """Two options, and a field that is not one."""

    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 4
    rate: Annotated[float, typer.Option("--learning-rate", help="Peak.")] = 0.5
    hidden: int = 7


@dataclass(frozen=True)
class Place:
    """One option with a name that another group may use for a field."""

    steps: Annotated[int, typer.Option(help="Other steps.")] = 1


def train(name: Name, training: Training, fast: Annotated[bool, typer.Option("--fast")] = False) -> None:
    """Train it."""
    typer.echo(f"{name} {training} {fast}")


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(with_option_groups(train))
    return made


def test_fields_are_options_with_their_names_ranges_and_defaults() -> None:
    run = CliRunner().invoke
    assert run(app(), ["it"]).output == "it Training(steps=4, rate=0.5, hidden=7) False\n"
    given = run(app(), ["it", "--steps", "2", "--learning-rate", "1", "--fast"])
    assert given.output == "it Training(steps=2, rate=1.0, hidden=7) True\n"
    assert run(app(), ["it", "--steps", "0"]).exit_code == 2
    assert run(app(), ["it", "--hidden", "1"]).exit_code == 2


def test_options_stand_in_the_order_of_parameters_and_fields() -> None:
    command = typer.main.get_command(app())
    assert [parameter.name for parameter in command.params][:4] == ["name", "steps", "rate", "fast"]
    assert command.help == "Train it."


def test_two_options_of_one_name_are_refused() -> None:
    def both(training: Training, place: Place) -> None: ...

    with pytest.raises(TypeError, match="more than one option is named 'steps'"):
        with_option_groups(both)
