"""No number is made of text or of a truth value: asked of every option of every technique, and of the file itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, Field, ValidationError

import hasten
from hasten import Config, ConfigError
from hasten._options import options_of
from hasten._plugins import host
from hasten._technique import TechniqueConfig

TECHNIQUES = ("aptp", "bottleneck", "hack", "rettention", "video_infinity")


def leaves(annotation: Any) -> set[Any]:
    """The plain types and literal values that a field takes, containers and ``Annotated`` looked through."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return leaves(get_args(annotation)[0])
    if parts := get_args(annotation):
        return {leaf for part in parts if part is not Ellipsis for leaf in leaves(part)}
    return {annotation}


def options(
    config: type[BaseModel], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], set[Any]]]:
    for name, field in config.model_fields.items():
        found = leaves(field.annotation)
        for leaf in found:
            if isinstance(leaf, type) and issubclass(leaf, BaseModel):
                yield from options(leaf, (*prefix, name))
        yield (*prefix, name), found


def every_option() -> list[Any]:
    cases = []
    for technique in TECHNIQUES:
        kinds = options_of(host().technique(technique).config_class).kinds
        for path, found in (option for kind in kinds for option in options(kind)):
            numeric = {leaf for leaf in found if leaf in (int, float) or type(leaf) is int}
            wrong: list[Any] = []
            if numeric and bool not in found:
                wrong += [True, False]
            if numeric and str not in found:
                wrong += ["1", "0.5", "8"]
            if bool in found and not numeric:
                wrong += [0, 1, "true", "yes", 1.0]
            if numeric and float not in found:
                wrong += [1.0, 8.0, 16.0]
            cases.append(pytest.param(technique, path, wrong, id=".".join((technique, *path))))
    return [case for case in cases if case.values[2]]


def test_the_generic_test_sees_the_options() -> None:
    seen = {(case.values[0], case.values[1]) for case in every_option()}
    assert {
        ("hack", ("ratio",)),
        ("hack", ("alpha",)),
        ("hack", ("kv_bits",)),
        ("aptp", ("max_extra_cost",)),
        ("aptp", ("fallback",)),
        ("bottleneck", ("stages", "scale")),
        ("bottleneck", ("spectrum",)),
        ("rettention", ("cache_budget",)),
        ("video_infinity", ("timeout_s",)),
        ("video_infinity", ("cfg_ranks",)),
    } <= seen


@pytest.mark.parametrize(("technique", "path", "wrong"), every_option())
def test_every_option(technique: str, path: tuple[str, ...], wrong: list[Any]) -> None:
    kind = options_of(host().technique(technique).config_class)
    for value, count in itertools.product(wrong, (0, 1, 2, 3)):
        nested: Any = [value] * count or value
        for name in reversed(path[1:]):
            nested = [{"steps": 1, name: nested}]
        with pytest.raises(ValidationError):
            kind.validate({path[0]: nested})
        with pytest.raises(ConfigError, match=rf"at techniques\.{technique}\.{path[0]}"):
            Config.of({technique: {path[0]: nested}})


@pytest.mark.parametrize(
    "name", ["seed", "steps", "num_prompts", "height", "width", "frames", "guidance_scale", "schema"]
)
@pytest.mark.parametrize("value", [True, False, "1", "1.0"])
def test_every_number_of_the_file(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"at {name}: "):
        Config.of({"techniques": {}, name: value})


@pytest.mark.parametrize("name", ["seed", "steps", "num_prompts", "height", "width", "frames", "schema"])
def test_a_fraction_is_no_count(name: str) -> None:
    with pytest.raises(ConfigError, match=f"at {name}: "):
        Config.of({"techniques": {}, name: 1.0})


class Inner(TechniqueConfig):
    type: int = 1
    schema_: Annotated[tuple[float, ...], Field(alias="fields")] = ()


class Foreign(TechniqueConfig):
    """As a plugin of somebody else's would write it, with names that a schema uses as well."""

    count: int = 1
    choices: dict[str, float] = Field(default_factory=dict)
    pair: tuple[int, float] | None = None
    bits: Literal[8, 16] | None = None
    flag: Literal[True, 2] = 2
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": "1"},
        {"count": True},
        {"choices": {"a": "1"}},
        {"choices": {"a": True}},
        {"pair": [True, 1.0]},
        {"pair": [1, "1"]},
        {"bits": 8.0},
        {"bits": "8"},
        {"flag": 1.0},
        {"inner": {"type": True}},
        {"inner": {"fields": ["1"]}},
        {"many": [{"type": "1"}]},
    ],
)
def test_configurations_of_strangers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Foreign.model_validate(wrong)


def test_what_is_right_stays_right() -> None:
    right = {
        "count": 3,
        "choices": {"a": 1, "b": 0.5},
        "pair": [1, 1],
        "bits": 16,
        "flag": True,
        "inner": {"type": 2, "fields": [1, 2.5]},
        "many": [{"type": 3}],
    }
    made = Foreign.model_validate(right)
    assert made.pair == (1, 1.0)
    assert made.inner.schema_ == (1.0, 2.5)
    assert made.flag is True
    assert Foreign.model_validate_json(made.model_dump_json(by_alias=True)) == made
    assert hasten.Config.of({"bottleneck": {"scale": [0.5, 0.25], "low_until": [0.5, 0.3]}}).techniques
    assert Foreign.model_json_schema()["properties"]["bits"]["anyOf"][0]["enum"] == [8, 16]


def test_all_branches_of_a_union_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"at techniques\.rettention\.tile: input should be 'auto' or a valid integer or"
    ):
        Config.of({"rettention": {"tile": True}})
