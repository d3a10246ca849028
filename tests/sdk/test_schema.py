from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from hasten import Config, ConfigError
from hasten._cli import build_app
from hasten._cli._describe import describe_default, describe_values, flatten
from hasten._document import parse_yaml
from hasten._options import options_of
from hasten._plugins import host
from hasten._schema import config_schema

ROOT = Path(__file__).parents[2]
TECHNIQUES = sorted(host().registry.techniques)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def valid() -> Callable[[Any], bool]:
    schema = config_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema).is_valid


def undescribed(schema: dict[str, Any]) -> Iterator[str]:
    for path, field in flatten(schema):
        if len(field.get("description", "").strip()) < 10:
            yield path


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_option_of_every_technique_is_described(name: str) -> None:
    options = options_of(host().technique(name).config_class)
    schema = options.json_schema()
    assert len(list(flatten(schema))) >= sum(len(kind.model_fields) for kind in options.kinds)
    assert list(undescribed(schema)) == []


def test_every_key_of_a_configuration_file_is_described() -> None:
    keys = config_schema()["properties"]
    assert {"techniques", "device", "dtype", "seed"} <= keys.keys()
    assert [key for key, field in keys.items() if len(field.get("description", "")) < 10] == []


def test_an_option_without_a_description_would_be_found() -> None:
    inner = {"properties": {"steps": {"type": "integer"}}}
    field = {"description": "Stages of a run.", "items": {"$ref": "#/$defs/Stage"}, "type": "array"}
    assert list(undescribed({"properties": {"stages": field}, "$defs": {"Stage": inner}})) == [
        "stages.*.steps"
    ]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_command_shows_every_description(name: str) -> None:
    shown = " ".join(run("plugins", name).output.replace("│", " ").split())
    for path, field in flatten(options_of(host().technique(name).config_class).json_schema()):
        assert path in shown
        assert " ".join(field["description"].split()[:2]) in shown
    assert all(len(line) <= 80 for line in run("plugins", name).output.splitlines())


@pytest.mark.parametrize(
    "file",
    [*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("docs/benchmarks/**/*.yaml")],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_the_schema_takes_every_configuration_that_is_shipped(
    file: Path, valid: Callable[[Any], bool]
) -> None:
    content = parse_yaml(file.read_text("utf-8"))
    if {entry["name"] for entry in content["techniques"]} <= set(TECHNIQUES):
        assert valid(content)
    else:  # of a plugin that is not installed
        assert not valid(content)


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ({}, True),
        ({"techniques": ["bottleneck"]}, True),
        ({"techniques": [{"name": "bottleneck", "delta": 0.1}]}, True),
        ({"techniques": {"hack": {"ratio": 0.5}, "bottleneck": None}}, True),
        ({"techniques": {"bottleneck": {"mode": "restart", "stages": [{"steps": 4}, {"steps": 4}]}}}, True),
        ({"device": "cuda", "dtype": "bfloat16", "seed": 3}, True),
        ({"techniques": [{"name": "bottleneck", "detla": 0.1}]}, False),
        ({"techniques": {"bottleneck": {"delta": 2}}}, False),
        ({"techniques": {"bottleneck": {"mode": "restart", "stages": [{"stepz": 4}]}}}, False),
        ({"techniques": ["botleneck"]}, False),
        ({"techniques": [{"delta": 0.1}]}, False),
        ({"dtype": "int8"}, False),
        ({"schema": 2}, False),
        ({"stesp": 4}, False),
    ],
)
def test_the_schema_agrees_with_the_parser(
    content: dict[str, Any], right: bool, valid: Callable[[Any], bool]
) -> None:
    assert valid(content) is right
    if right:
        Config.of({"schema": 1, **content})
    else:
        with pytest.raises(ConfigError):
            Config.of({"schema": 1, **content})


def test_the_command_prints_and_writes_it(tmp_path: Path) -> None:
    printed = json.loads(run("schema").output)
    assert printed == json.loads(json.dumps(config_schema()))
    file = tmp_path / "hasten.schema.json"
    assert "yaml-language-server: $schema=hasten.schema.json" in run("schema", "--out", file).output
    assert json.loads(file.read_text("utf-8")) == printed
    refused = run("schema", "--out", file / "x.json")
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr


@pytest.mark.parametrize(
    ("field", "values", "default"),
    [
        (
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5},
            "number above 0 to 1",
            "0.5",
        ),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "number above 0 and below 1", ""),
        (
            {
                "anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}, {"type": "null"}],
                "default": None,
            },
            "auto, whole number from 1",
            "null",
        ),
        ({"enum": ["a", "b"], "default": "a"}, "a, b", "a"),
        ({"type": "array", "items": {"type": "string"}}, "list of (text)", ""),
        ({"type": "boolean", "default": False}, "true, false", "false"),
    ],
)
def test_values_in_words(field: dict[str, Any], values: str, default: str) -> None:
    assert describe_values(field) == values
    assert describe_default(field) == default
