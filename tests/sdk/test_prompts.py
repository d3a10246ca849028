"""Prompts files from other tools: what they hold comes out as it is, or is refused with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hasten import ConfigError
from hasten._document import read_json_lines
from hasten._prompts import read_prompts

FOX = "a red fox"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", f"\ufeff{FOX}\n", (FOX,)),
        ("a.txt", f"{FOX}\r\na cat\r\n", (FOX, "a cat")),
        ("a.txt", f"{FOX}\n\n  \n", (FOX,)),
        ("a", f"{FOX}", (FOX,)),
        ("a.txt", "a red\u2028fox\na\x85b\na\x0cb\na\x1cb\na\u2029b\na\x0bb", 6),
        ("a.jsonl", '{"prompt": "a red\u2028fox"}\n{"prompt": "a\x85b"}\n', ("a red\u2028fox", "a\x85b")),
        ("a.jsonl", '\ufeff{"prompt": "a red fox", "seed": 5}\n\n{"prompt": "a cat"}\n\n', (FOX, "a cat")),
        ("A.JSONL", json.dumps({"prompt": FOX}), (FOX,)),
        ("a.NDJson", json.dumps({"prompt": FOX}), (FOX,)),
        ("a.json", json.dumps([FOX, "a cat"], indent=1), (FOX, "a cat")),
        ("a.JSON", "\ufeff" + json.dumps([{"prompt": FOX, "id": 1}]), (FOX,)),
        ("a.json", json.dumps({"prompts": [FOX]}), (FOX,)),
        ("a.csv", f"id,prompt\n0,{FOX}\n1,a cat\n\n", (FOX, "a cat")),
        (
            "a.CSV",
            '\ufeffPrompt\r\n"a fox, and a ""cat"""\r\n"two\nlines"\r\n',
            ('a fox, and a "cat"', "two\nlines"),
        ),
        ("a.tsv", f"id\tprompt\n0\t{FOX}\n", (FOX,)),
        ("a.csv", "prompt\na\u2028b\n", ("a\u2028b",)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_read(tmp_path: Path, name: str, text: str, expected: tuple[str, ...] | int) -> None:
    (tmp_path / name).write_bytes(text.encode())
    prompts = read_prompts(tmp_path / name)
    assert prompts == expected if isinstance(expected, tuple) else len(prompts) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", f"{FOX}\n\na cat\n", r"a\.txt:2: empty where a prompt was expected"),
        ("a.txt", "\n \n", "a.txt: the prompts file is empty"),
        ("a.jsonl", f'{{"prompt": "{FOX}"}}\n{{"prompt": null}}', r"a\.jsonl:2: a prompt is text, not null"),
        ("a.jsonl", '{"prompt": 5}', r"a\.jsonl:1: a prompt is text, not 5"),
        ("a.jsonl", '{"prompt": true}', r"a\.jsonl:1: a prompt is text, not true"),
        ("a.jsonl", '{"prompt": ["a", "b"]}', r"a\.jsonl:1: a prompt is text, not \["),
        ("a.jsonl", '{"prompt": " "}', r"a\.jsonl:1: empty where a prompt"),
        ("a.jsonl", '{"text": "a"}', r"a\.jsonl:1: expected .*the keys here are: 'text'"),
        ("a.jsonl", '"a"', r"a\.jsonl:1: the prompts file must have a JSON object on each line"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', r"a\.jsonl:1: 'prompt' is given twice"),
        ("a.jsonl", '{"prompt": "a"', r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", '{"prompt": "\\ud800"}', r"a\.jsonl:1: .*surrogate"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: nested deeper than 32 levels"),
        ("a.json", "{}", r"a\.json: a prompts file in JSON holds"),
        ("a.json", '{"prompts": "a"}', r"a\.json: a prompts file in JSON holds"),
        ("a.json", '["a", null]', r"a\.json: a prompt is text, not null"),
        ("a.json", "[]", "is empty"),
        (
            "a.csv",
            "0,a red fox\n",
            r"a\.csv:1: the first row has to name one column 'prompt'; it is: '0', 'a red fox'",
        ),
        ("a.csv", "prompt,Prompt\na,b\n", r"a\.csv:1: the first row has to name one column"),
        ("a.csv", "prompt,id\na,1\n\nb,2\n", r"a\.csv:3: empty where"),
        ("a.csv", "prompt\na fox, red\n", r"a\.csv:2: 2 cells in a table of 1 columns"),
        ("a.csv", "id,prompt\n1\n", r"a\.csv:2: empty where"),
        ("a.csv", 'prompt\n"a', r"a\.csv:2: not a valid table"),
        ("a.tsv", f"0\t{FOX}", r"a\.tsv:1: the first row"),
        ("a.yaml", f"- {FOX}\n", r"a\.yaml: prompts are read from text .* not from a \.yaml file"),
        ("a.txt", b"\xff\xfea\0", r"a\.txt: the prompts file is UTF-16; save it as UTF-8"),
        ("a.txt", b"a\nb\xe4\n", r"a\.txt, line 2: the prompts file is not UTF-8 text \(byte 0xe4\)"),
        ("a.txt", b"a\nb\n\0\n", r"a\.txt, line 3: the prompts file is not text"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)


def test_folders_devices_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="directory"):
        read_prompts(tmp_path / "folder")
    with pytest.raises(ConfigError, match="the prompts file is a device"):
        read_prompts("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is empty"):  # nobody writes: it does not wait for ever
        read_prompts(tmp_path / "pipe")
    reading, writing = os.pipe()
    try:
        os.write(writing, b"a red fox\na cat\n")
        os.close(writing)
        assert read_prompts(f"/dev/fd/{reading}") == (FOX, "a cat")  # as <(command) of a shell
    finally:
        os.close(reading)
    with pytest.raises(ConfigError, match="cannot read prompts file"):
        read_prompts("a\0b")


def test_json_lines_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"a": 1}\n\n{"a": "x\u2028y"}\n\n'.encode())
    assert read_json_lines(tmp_path / "a.jsonl", "list") == [(1, {"a": 1}), (3, {"a": "x\u2028y"})]
