"""Options that come in several classes, told apart by a field."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

import hasten
from hasten._options import options_of
from hasten._registry import Registry


class Fast(hasten.TechniqueConfig):
    mode: Literal["fast"] = Field("fast", description="which")
    steps: int = Field(2, description="how many")


class Exact(hasten.TechniqueConfig):
    mode: Literal["exact"] = Field(description="which")
    digits: int = Field(3, description="how many")


class Untold(hasten.TechniqueConfig):
    mode: Literal["exact"] = Field("exact", description="which")


OPTIONS = options_of(Fast | Exact)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({}, Fast()),
        ({"steps": 5}, Fast(steps=5)),
        ({"mode": "exact", "digits": 4}, Exact(mode="exact", digits=4)),
        ({"mode": "exact", "steps": 2}, Exact(mode="exact")),
    ],
)
def test_the_field_decides(given: dict[str, Any], made: hasten.TechniqueConfig) -> None:
    assert OPTIONS.validate(given) == made


@pytest.mark.parametrize(
    ("given", "place", "message"),
    [
        ({"digits": 4}, "digits", "digits has no effect with mode='fast': remove it, or set mode='exact'"),
        ({"mode": "exact", "steps": 3}, "steps", "set mode='fast'"),
        ({"mode": "slow"}, "mode", "'fast' or 'exact'"),
        ({"mode": ["fast"]}, "mode", "'fast' or 'exact'"),
        ({"mode": "exact", "digits": "4"}, "digits", "valid integer"),
        ({"other": 1}, "other", "Extra inputs"),
    ],
)
def test_what_is_wrong_is_placed(given: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        OPTIONS.validate(given)
    assert [error["loc"] for error in caught.value.errors()] == [(place,)]


def test_the_schema_is_that_of_a_discriminated_union() -> None:
    schema = OPTIONS.json_schema()
    assert schema["discriminator"]["propertyName"] == "mode"
    assert {reference["$ref"] for reference in schema["oneOf"]} == {"#/$defs/Fast", "#/$defs/Exact"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [(Fast | Untold, "all but the first require 'mode'"), (Fast | int, "or a union"), (int, "or a union")],
)
def test_other_declarations_are_refused(declared: Any, message: str) -> None:
    class Wrong(hasten.Technique[Any]):
        name, summary, config_class = "wrong", "wrong", declared

        def claims(self, target: Any) -> tuple[()]:
            return ()

        def attach(self, target: Any, seams: Any) -> None: ...

    with pytest.raises(hasten.PluginError, match=message):
        Registry().add_technique("me", Wrong)
