"""Configurations: every accepted spelling, and errors that say where and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten import Config, ConfigError, apply_overrides


def names(config: Config) -> list[str]:
    return [entry.name for entry in config.techniques]


YAML = """\
schema: 1
model: mini/t2i-dit
techniques:
  - name: scale
    factor: 0.25
  - name: count
    nested:
      depth: 3
seed: 7
steps: 4
"""
TOML = """\
schema = 1
model = "mini/t2i-dit"
seed = 7
steps = 4
[[techniques]]
name = "scale"
factor = 0.25
[[techniques]]
name = "count"
nested = {depth = 3}
"""


def test_every_spelling_means_the_same(tmp_path: Path) -> None:
    plain = {"scale": {"factor": 0.25}, "count": {"nested": {"depth": 3}}}
    expected = Config.of(plain)
    assert names(expected) == ["scale", "count"]
    assert expected.techniques[0].options.factor == 0.25  # type: ignore[attr-defined]
    entries = [{"name": "scale", "factor": 0.25}, {"name": "count", "nested": {"depth": 3}}]
    assert (
        Config.of(entries)
        == Config.of({"techniques": entries})
        == Config.of({"techniques": plain})
        == expected
    )
    assert Config.of(expected) is expected
    assert Config(techniques=plain) == expected  # type: ignore[arg-type]
    assert names(Config.of(["count", "scale"])) == ["count", "scale"]
    assert Config.of({"scale": None}) == Config.of(["scale"])


def test_files_agree_and_round_trip(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    (tmp_path / "a.toml").write_text(TOML)
    config = Config.of(tmp_path / "a.yaml")
    assert (config.model, config.seed, config.steps) == ("mini/t2i-dit", 7, 4)
    assert Config.of(str(tmp_path / "a.toml")) == config
    (tmp_path / "a.json").write_text(config.to_json())
    assert Config.of(tmp_path / "a.json").to_dict() == config.to_dict()
    assert json.loads(config.to_json())["techniques"][0] == {
        "name": "scale",
        "factor": 0.25,
        "explode_at": None,
        "poison_at": None,
    }
    with pytest.raises(Exception, match="frozen"):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "path", "line", "message"),
    [
        ("techniques:\n- name: scale\n  factr: 1\n", "techniques.0.factr", 3, "did you mean 'factor'"),
        ("techniques:\n  scale:\n\n    factor: x\n", "techniques.scale.factor", 4, "valid number.*got 'x'"),
        ("techniques:\n  count:\n    nested: {dept: 2}\n", "techniques.count.nested.dept", 3, "mean 'depth'"),
        (
            "\ntechniques: [scale, scal]\n",
            "techniques.1",
            2,
            "unknown technique 'scal'; did you mean 'scale'",
        ),
        ("seed: 1\nmodl: x\n", "modl", 2, "unknown option 'modl' of a configuration; did you mean 'model'"),
        ("schema: 2\n", "schema", 1, "should be 1; got 2"),
        ("techniques:\n- scale\n- scale\n", "techniques", 1, "'scale' is listed twice"),
        ("techniques:\n  scale: {}\n  scale: {}\n", "techniques", 3, "'scale' is given twice"),
        ("techniques:\n- factor: 1\n", "techniques.0", 2, "needs a 'name'"),
        ("techniques:\n  scale: 3\n", "techniques.scale", 2, "mapping from option to value, not 3"),
        ("techniques: scale\n", "techniques", 1, "list of names"),
        ("techniques:\n- 3\n", "techniques.0", 2, "is a string, not 3"),
        ("techniques: [\n", "", 2, "not valid YAML"),
        ("- scale\n", "", 1, "a mapping with 'techniques:'"),
    ],
)
def test_errors_name_path_and_line(tmp_path: Path, text: str, path: str, line: int, message: str) -> None:
    file = tmp_path / "fast.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Config.of(file)
    assert (caught.value.path, caught.value.line) == (path, line)
    assert f"{file}, line {line}: " in str(caught.value)
    assert not path or str(caught.value).startswith(f"at {path} in ")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ("a.json", '{"seed": }', "line 1: not valid JSON"),
        ("a.toml", "seed = ", "not valid TOML"),
        ("a.ini", "", "cannot tell the format"),
    ],
)
def test_other_formats(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        Config.of(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("scale", r"write \['scale'\]"),
        ("missing.yaml", "cannot read configuration file 'missing.yaml'"),
        (3, "a configuration is a list of names, a mapping, a Config or a path, not int"),
        ({"scale": {"factr": 1}}, r"at techniques.scale.factr: unknown option 'factr' of technique 'scale'"),
        ({"scale": {"factor": float("nan")}}, "at techniques.scale.factor: .*finite"),
    ],
)
def test_values_from_python(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.of(value)


def test_no_configuration_is_dropped_in_silence_by_the_constructor() -> None:
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        Config(sed=3)  # type: ignore[call-arg]


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    config = apply_overrides(
        tmp_path / "a.yaml",
        enable=["scale", "seen"],
        sets=["scale.factor=1e-1", "count.nested.depth=5", "count.modules=[a, b]"],
    )
    assert names(config) == ["scale", "count", "seen"]
    scale, count = (entry.options for entry in config.techniques[:2])
    assert scale.factor == 0.1  # type: ignore[attr-defined]
    assert count.nested.depth == 5  # type: ignore[attr-defined]
    assert count.modules == ("a", "b")  # type: ignore[attr-defined]
    assert config.seed == 7
    assert names(apply_overrides(None, ["scale"])) == ["scale"]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("scale.factr=1", "unknown option 'factr'"),
        ("scal.factor=1", r"'scal' is not enabled; did you mean 'scale'\? Add --enable scal"),
        ("factor=1", "write NAME.OPTION=VALUE"),
        ("scale.factor", "write NAME.OPTION=VALUE"),
        ("scale.factor=[", "not a YAML value"),
        ("scale.factor.deep=1", "which has no options|valid number"),
    ],
)
def test_bad_overrides(sets: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(["scale"], sets=[sets])


def test_unknown_technique_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match="unknown technique 'scael'; did you mean 'scale'"):
        apply_overrides(None, ["scael"])


def test_configuration_that_does_not_survive_json_is_the_plugins_fault(register: Any) -> None:
    from collections.abc import Callable

    class Lossy(hasten.TechniqueConfig):
        at: float = 0.0

        def model_dump_json(self, **_: Any) -> str:  # type: ignore[override]
            return '{"at": 2.0}'

    class Broken(hasten.Technique[Lossy]):
        name = "broken"
        summary = "forgets its option"
        config_class = Lossy
        claims: Callable[..., Any] = staticmethod(lambda target: [])  # type: ignore[assignment]
        attach: Callable[..., Any] = staticmethod(lambda target, seams: None)  # type: ignore[assignment]

    register(Broken)
    with pytest.raises(
        hasten.PluginError, match="technique 'broken' has options that change when written to JSON"
    ):
        Config.of({"broken": {"at": 1.0}})
