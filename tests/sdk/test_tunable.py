"""What is worth trying of an option, declared beside it: by built-in techniques and by a stranger's."""

from __future__ import annotations

from typing import Annotated

import pytest
from hasten_every_other import EveryOther
from pydantic import Field

from hasten._options import options_of
from hasten._plugins import host
from hasten.extend import Between, Choices, ConfigError, TechniqueConfig, dial_of, tunable_options


class Options(TechniqueConfig):
    strength: Annotated[float, Field(ge=0), Between(0.1, 0.4, log=True, dial=True)] = 0.1
    period: Annotated[int, Between(2, 6)] = 2
    kind: Annotated[str | None, Choices("slow", "fast")] = None
    other: int = 3


def test_what_is_declared_is_found_in_order() -> None:
    found = tunable_options(Options)
    assert list(found) == ["strength", "period", "kind"]
    assert dial_of(found) == "strength"
    assert dial_of({"kind": found["kind"]}) is None
    assert Options.model_json_schema()["properties"]["kind"]["tunable"] == {
        "choices": ["slow", "fast"],
        "dial": False,
    }


def test_values_run_from_careful_to_bold() -> None:
    assert Between(0.1, 0.4, log=True).values(3) == (0.1, 0.2, 0.4)
    assert Between(0.9, 0.0).values(4) == (0.9, 0.6, 0.3, 0.0)
    assert Between(2, 6).values(9) == (2, 3, 4, 5, 6)  # no whole number twice
    assert Between(2, 6).values(1) == (2,)
    assert Choices(8, 5, 3, 2, 1).values(3) == (8, 3, 1)
    assert Choices("a", "b").values(5) == ("a", "b")
    assert all(isinstance(value, float) for value in Between(0.25, 0.03125, log=True).values(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choices(1), "two different"),
        (lambda: Choices(1, 2, 1), "two different"),
        (lambda: Between(1, 1), "ends must differ"),
        (lambda: Between(0.0, 1.0, log=True), "positive"),
    ],
)
def test_declarations_that_say_nothing_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_two_dials_are_refused() -> None:
    class Two(TechniqueConfig):
        a: Annotated[int, Choices(1, 2, dial=True)] = 1
        b: Annotated[int, Choices(1, 2, dial=True)] = 1

    with pytest.raises(ConfigError, match=r"2 dials \(a, b\)"):
        tunable_options(Two)


@pytest.mark.parametrize("name", ["aptp", "bottleneck", "guidance_interval", "hack", "rettention"])
def test_built_in_techniques_have_a_dial_of_valid_values(name: str) -> None:
    kind = host().technique(name).config_class
    found = tunable_options(kind)
    dial = dial_of(found)
    assert dial is not None
    for option, tunable in found.items():
        for value in tunable.values(5):
            options_of(kind).validate({option: value})


def test_a_technique_without_a_declaration_has_nothing_to_turn() -> None:
    assert tunable_options(EveryOther.config_class) == {}
