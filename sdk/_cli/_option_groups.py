"""Command-line options that are declared once, as the fields of a dataclass."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

__all__ = ["with_option_groups"]

ResultT = TypeVar("ResultT")


def with_option_groups(command: Callable[..., ResultT]) -> Callable[..., ResultT]:
    """A command whose dataclass parameters are given field by field on the command line.

    A field is an option if its type is ``Annotated`` with ``typer.Option`` or ``typer.Argument``; other fields keep
    their defaults. Options stand in the order of the parameters, and of the fields within a dataclass. ::

        @dataclass(frozen=True)
        class Training:
            steps: Annotated[int, typer.Option(min=0, help="Training steps.")] = 400

        @app.command()
        @with_option_groups
        def train(model: ModelName, training: Training) -> None: ...

    Raises:
        TypeError: two options of the command have the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            shown = [_option(field, hint) for field, hint in _shown(kind)]
            groups[parameter.name] = (kind, [option.name for option in shown])
            options += shown
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))

    @functools.wraps(command)
    def run(**given: Any) -> ResultT:
        made = {
            name: kind(**{field: given.pop(field) for field in names})
            for name, (kind, names) in groups.items()
        }
        return command(**given, **made)

    if repeated := {o.name for o in options if [p.name for p in options].count(o.name) > 1}:
        raise TypeError(f"{command.__qualname__}: more than one option is named {min(repeated)!r}")
    signature = inspect.Signature(options)
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _shown(kind: type) -> list[tuple[Field[Any], Any]]:
    """The fields that are options, each with its resolved type."""
    hints = get_type_hints(kind, include_extras=True)
    typed = [(field, hints[field.name]) for field in fields(kind)]
    return [
        (field, hint)
        for field, hint in typed
        if any(isinstance(note, (ArgumentInfo, OptionInfo)) for note in getattr(hint, "__metadata__", ()))
    ]


def _option(field: Field[Any], hint: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
