"""Which prompt belongs to which picture: order of names, and manifests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten._errors import ConfigError
from hasten.eval.pictures.pairing import Manifest, Order, ambiguity, sort_names


def test_numbers_compare_by_value() -> None:
    names = ["10.png", "9.png", "0.png", "a/2.png", "a/10.png", "x1y10.png", "x1y9.png"]
    assert sort_names(names) == ["0.png", "9.png", "10.png", "a/2.png", "a/10.png", "x1y9.png", "x1y10.png"]
    assert sort_names(names, Order.lexicographic)[:3] == ["0.png", "10.png", "9.png"]
    long = ["9" * 5000, "1" + "0" * 5000]  # more digits than Python makes an integer of
    assert sort_names(long) == long


@pytest.mark.parametrize(
    ("names", "clear"),
    [
        ([f"{i}.png" for i in range(12)], True),
        ([f"{i:05d}.png" for i in range(12)], True),
        ([f"a/{i}.jpg" for i in range(12)] + ["b/0.jpg"], True),
        ([f"img_{i}.png" for i in range(10)], True),
        ([f"img_{i:03d}.png" for i in range(12)], True),
        ([f"img_{i}.png" for i in range(12)], False),
        ([f"{i}/x.png" for i in range(12)], False),
        ([f"{i}/0.png" for i in range(12)], False),
        (["1.png", "2.png", "10_b.png"], False),
    ],
)
def test_names_that_could_mean_either_order(names: list[str], clear: bool) -> None:
    assert (ambiguity(names) == "") is clear


def resolved(path: Path, pictures: list[str]) -> tuple[dict[str, str], dict[str, str] | None]:
    return Manifest.read(path).resolve("there", pictures, set(pictures).__contains__)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.json", '\ufeff{"1.png": "one", "sub/0": "nought"}'),
        ("m.json", '[{"file": "1.png", "prompt": "one"}, {"key": "sub/0", "prompt": "nought"}]'),
        ("m.JSONL", '{"file_name": "1.png", "text": "one"}\n\n{"key": "sub/0", "prompt": "nought"}\n'),
        ("m.ndjson", '{"key": 1, "prompt": "one"}\r\n{"key": "sub/0", "prompt": "nought"}'),
        ("m.csv", "file,prompt\n1.png,one\nsub/0.jpg,nought\n"),
        ("m.TSV", "key\tprompt\n1\tone\nsub/0\tnought\n"),
    ],
)
def test_every_form_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    files, prompts = resolved(tmp_path / name, ["sub/0.jpg", "1.png"])
    assert files == {"1": "1.png", "sub/0": "sub/0.jpg"}
    assert list(files) == ["1", "sub/0"]
    assert prompts == {"1": "one", "sub/0": "nought"}


def test_separators_within_a_prompt_do_not_split_it(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        json.dumps({"key": "0", "prompt": "a\u2028b\x85c\x0cd"}, ensure_ascii=False), encoding="utf-8"
    )
    assert resolved(path, ["0.png"])[1] == {"0": "a\u2028b\x85c\x0cd"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.json", '{"0": null}', "prompt must be text, not None"),
        ("m.json", '{"0": 5}', "prompt must be text, not 5"),
        ("m.json", '{"0": " "}', "prompt must be text"),
        ("m.json", '{"0": "a", "0": "b"}', "'0' is given twice"),
        ("m.json", '{"0": "a", "0.png": "b"}', "listed twice"),
        ("m.json", '"a"', "expected {name: prompt}"),
        ("m.json", "[" * 100_000, "nested"),
        ("m.json", "{", "not valid JSON"),
        ("m.jsonl", '{"key": "0"}\n{"key": "0"}', "line 2: the key '0' appears twice"),
        ("m.jsonl", '{"key": "0", "prompt": ["a"]}', r"line 1: the prompt must be text, not \['a'\]"),
        ("m.jsonl", '{"key": "0", "prompt": "a"}\n{"key": "1"}', "line 2: '1' has no prompt"),
        ("m.jsonl", '{"key": true}', "line 1: key must be text, not True"),
        ("m.csv", "a,b\n0,1\n", "line 1: the first line must name the columns"),
        ("m.csv", "file,prompt\n0.png,a,b\n", "line 2: more or fewer fields"),
        ("m.csv", "file,prompt\n0.png,\n", "line 2: the prompt must be text"),
        ("m.xlsx", "", "is not a manifest"),
        ("m.json", '{"7": "a", "8.png": "b"}', "2 of 2 images .* are not in there, the first is 7.png"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        resolved(tmp_path / name, ["0.png", "1.png"])


def test_a_name_without_its_ending_must_be_unique(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"0": "a"}')
    with pytest.raises(ConfigError, match="not in there"):
        resolved(tmp_path / "m.json", ["0.jpg", "0.gif"])
