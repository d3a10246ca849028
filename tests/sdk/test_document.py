"""Configuration files nobody should write, and some that people do: one typed error, and at once."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hasten import Config, ConfigError, apply_overrides
from hasten._document import parse_yaml

_LETTERS = "abcdefghij"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(_LETTERS)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in itertools.pairwise(_LETTERS)
)
DEEP = "nested deeper than 32 levels"
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", LAUGHS, "more than 50,000 values, with aliases expanded"),
        ("a.yaml", MERGES, "more than 50,000 values, with aliases expanded"),
        (
            "a.yaml",
            "techniques: &x [*x]\n",
            "at techniques.0.0.0 in .*line 1: .*or an alias that contains itself",
        ),
        ("a.yaml", "techniques: &x {scale: *x}\n", "line 1: .*or an alias that contains itself"),
        ("a.yaml", "techniques: &x {<<: *x}\n", "line 1: .*or an alias that contains itself"),
        ("a.yaml", "[" * 100_000, DEEP),
        ("a.yaml", "{a: " * 50_000, DEEP),
        ("a.yaml", "- " * 50_000, DEEP),
        ("a.yaml", "\n".join(" " * i + "a:" for i in range(300)), DEEP),
        ("a.json", "[" * 100_000, DEEP),
        ("a.json", '{"a":' * 100_000, DEEP),
        ("a.json", '{"seed": ' + "[" * 40 + "]" * 40 + "}", DEEP),
        ("a.toml", "a = " + "[" * 100_000, DEEP),
        ("a.toml", "seed = 1\n" + ".".join("a" * 20_000) + " = 1", "line 2: nested deeper"),
        (
            "a.yaml",
            "seed: 2024-01-01\n",
            "at seed in .*line 1: input should be a valid integer; got '2024-01-01'",
        ),
        ("a.toml", "seed = 2024-01-01\n", "at seed in .*a date cannot be the value of an option"),
        ("a.yaml", f"seed: {HUGE}", "at seed in .*line 1: .*not a valid value"),
        ("a.json", f'{{"seed": {HUGE}}}', "not valid JSON"),
        ("a.toml", f"seed = {HUGE}", "not valid TOML"),
        ("a.yaml", "seed: " + "9" * 30, "at seed in .*line 1: an integer of more than 64 bits"),
        ("a.json", '{"seed": ' + "9" * 30 + "}", "at seed in .*an integer of more than 64 bits"),
        ("a.yaml", "seed: 18446744073709551615", "at seed in .*line 1: input should be less than"),
        ("a.yaml", "seed: 1:30", "at seed in .*line 1: .*got '1:30'"),
        (
            "a.yaml",
            "techniques: {count: {fail_to_attach: yes}}",
            "line 1: input should be a valid boolean; got 'yes'",
        ),
        ("a.yaml", "seed: 1\nsteps: 2\nseed: 3\n", "line 3: 'seed' is given twice"),
        (
            "a.yaml",
            "techniques:\n  scale:\n    factor: 1\n    factor: 2\n",
            "at techniques.scale in .*line 4: 'factor'",
        ),
        ("a.json", '{"techniques": {"scale": {"factor": 1, "factor": 2}}}', "'factor' is given twice"),
        ("a.toml", "seed = 1\nseed = 2", "not valid TOML"),
        ("a.json", '{"guidance_scale": NaN}', "NaN is not a number"),
        ("a.json", '{"guidance_scale": 1e999}', "at guidance_scale in .*finite"),
        ("a.yaml", "guidance_scale: .inf", "at guidance_scale in .*line 1: .*finite"),
        ("a.toml", "guidance_scale = nan", "at guidance_scale in .*finite"),
        ("a.yaml", b"#" * 10_000_000, "larger than 256 KiB"),
        ("a.json", b" " * 10_000_000, "larger than 4 MiB"),
        ("a.toml", b"#" * 10_000_000, "larger than 4 MiB"),
        ("a.yaml", "seed: \x1b[31m", r"line 1: not valid YAML: control character #x001b"),
        (
            "a.yaml",
            "\nseed: !!python/object/apply:os.system [ls]",
            "at seed in .*line 2: the tag .* is not supported; remove it",
        ),
        ("a.yaml", "seed: !!binary aGk=", "at seed in .*the tag"),
        ("a.yaml", "1: 2", "line 1: a key must be a plain word, not '1'.*use quotes"),
        ("a.yaml", "? [a]\n: 1", "line 1: a key must be a plain word"),
        ("a.yaml", "seed: 1\n---\nseed: 2", "line 2: not valid YAML"),
        ("a.yaml", "seed: !!int x", "at seed in .*line 1: 'x' is not a valid value"),
        ("a.json", '{"model": "\\ud800"}', "at model in .*surrogate"),
        ("a.yaml", 'a: 1\nmodel: "\\ud800"', "at model in .*line 2: .*surrogate"),
        ("a.yaml", b"seed: 1 # \xe4", "not UTF-8"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_refused_at_once(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    begun = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        Config.of(tmp_path / name)
    assert time.process_time() - begun < 1.0
    assert caught.value.source == str(tmp_path / name)
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "\ufeffseed: 1", {"seed": 1}),
        ("a.json", '\ufeff{"seed": 1}', {"seed": 1}),
        ("a.toml", "\ufeffseed = 1", {"seed": 1}),
        ("A.YML", "seed: 1\r\nsteps: 2\r\n", {"seed": 1, "steps": 2}),
        ("a.yaml", "guidance_scale: 1e-2", {"guidance_scale": 0.01}),
        ("a.yaml", "seed: ~\nmodel:\nsteps: NULL\n", {"seed": None, "model": None, "steps": None}),
        ("a.yaml", "model: no", {"model": "no"}),
        ("a.yaml", "out: 2024-01-01", {"out": "2024-01-01"}),
        ("a.yaml", "prompts: [off, =, 1:30, 0x]", {"prompts": ("off", "=", "1:30", "0x")}),
        ("a.yaml", "seed: 010\nsteps: 0o10", {"seed": 10, "steps": 8}),
        ("a.yaml", "seed: -9223372036854775808", {"seed": -(2**63)}),
        ("a.yaml", "", {"seed": None}),
        ("a.yaml", "# nothing\n", {"seed": None}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_values_are_those_of_yaml_1_2(tmp_path: Path, name: str, text: str, expected: dict[str, Any]) -> None:
    (tmp_path / name).write_bytes(text.encode())
    config = Config.of(tmp_path / name)
    assert {key: getattr(config, key) for key in expected} == expected


def test_aliases_and_merge_keys_work_within_the_limit(tmp_path: Path) -> None:
    text = "techniques:\n  scale: &same\n    factor: 0.25\n    explode_at: 3\n"
    (tmp_path / "a.yaml").write_text(text)
    assert Config.of(tmp_path / "a.yaml").techniques[0].options.explode_at == 3  # type: ignore[attr-defined]
    assert parse_yaml("{a: &x {p: 1, q: 2}, b: {<<: *x, q: 3}, c: *x}") == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
        "c": {"p": 1, "q": 2},
    }
    assert parse_yaml("{<<: [{a: 1}, {a: 2, b: 2}]}") == {"a": 1, "b": 2}
    with pytest.raises(ConfigError, match="takes a mapping"):
        parse_yaml("{<<: 3}")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name, message in (
        ("pipe", "is a pipe, not a file"),
        ("zero", "is a device, not a file"),
        ("folder", "cannot read configuration file .*directory"),
        ("loop", "cannot read configuration file"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config.of(tmp_path / f"{name}.yaml")


def test_the_command_line_reads_the_same_yaml() -> None:
    made = apply_overrides(None, ["scale"], ["scale.factor=1e-2", "scale.explode_at=~"])
    assert made.techniques[0].options.model_dump() == {"factor": 0.01, "explode_at": None, "poison_at": None}
    for text, message in (
        ("scale.factor=[", r"--set scale.factor=\[: '\[' is not a YAML value"),
        ("scale.factor=yes", "at techniques.scale.factor: input should be a valid number; got 'yes'"),
        ("scale.factor=" + "[" * 1000, DEEP),
        ("scale.factor=" + HUGE, "is not a valid value"),
    ):
        with pytest.raises(ConfigError, match=message):
            apply_overrides(None, ["scale"], [text])
