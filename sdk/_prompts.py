"""Files with prompts: text, JSON Lines, JSON, CSV and TSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hasten._document import parse_json, read_json_lines
from hasten._errors import ConfigError
from hasten._text import read_lines, read_text

__all__ = ["read_prompts"]

_WHAT = "prompts file"
_FIELD = "prompt"
_OTHER = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm")
"""Text whose lines are no prompts."""
Numbered = Iterator[tuple[int | None, Any]]
"""Line number, where the format has one, and what stands where a prompt should."""


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Prompts of a UTF-8 file; its suffix, in any letter case, names the format.

    * ``.jsonl``, ``.ndjson``: an object with the key ``prompt`` on each line.
    * ``.json``: a list of strings or of such objects, or an object with such a list under ``prompts``.
    * ``.csv``, ``.tsv``: a table whose first row names a column ``prompt``.
    * anything else but YAML, TOML, XML and HTML: a prompt on each line. Form feeds and the line separators of Unicode
      do not end a line.

    A byte-order mark, white space around a prompt and empty lines at the end do not count. An empty prompt is an error:
    only on the command line, as ``--prompt ""``, can nobody have meant anything else.

    Raises:
        ConfigError: the file cannot be read or holds no prompt, or a prompt is empty or no text. Names the line.
    """
    path = Path(path)
    if path.suffix.lower() in _OTHER:
        formats = "text (a prompt on each line), JSON Lines, JSON, CSV and TSV"
        raise _refusal(f"prompts are read from {formats}, not from a {path.suffix} file", path)
    reader = _READERS.get(path.suffix.lower(), _lines)
    prompts = tuple(_check(value, path, line) for line, value in reader(path))
    if not prompts:
        raise _refusal(f"the {_WHAT} is empty: put one prompt on each line", path)
    return prompts


def _check(value: object, path: Path, line: int | None) -> str:
    if not isinstance(value, str):
        raise _refusal(f"a prompt is text, not {json.dumps(value)[:60]}", path, line)
    if not value.strip():
        raise _refusal("empty where a prompt was expected; remove it", path, line)
    return value.strip()


def _lines(path: Path) -> Numbered:
    yield from enumerate(read_lines(path, _WHAT, pipes=True), 1)


def _json_lines(path: Path) -> Numbered:
    for line, record in read_json_lines(path, _WHAT):
        yield line, _field(record, path, line)


def _json(path: Path) -> Numbered:
    content = parse_json(read_text(path, _WHAT), str(path))
    if isinstance(content, dict):
        content = content.get("prompts")
    if not isinstance(content, list):
        text = f'a {_WHAT} in JSON holds ["...", "..."], [{{"prompt": "..."}}, ...] or {{"prompts": [...]}}'
        raise _refusal(text, path)
    for item in content:
        yield None, _field(item, path, None) if isinstance(item, dict) else item


def _field(record: dict[str, Any], path: Path, line: int | None) -> Any:
    if _FIELD not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise _refusal(f'expected {{"prompt": "..."}}; the keys here are: {keys}', path, line)
    return record[_FIELD]


def _table(delimiter: str) -> Callable[[Path], Numbered]:
    def read(path: Path) -> Numbered:
        rows = csv.reader(io.StringIO(read_text(path, _WHAT), newline=""), delimiter=delimiter, strict=True)
        try:
            yield from _column([(rows.line_num, row) for row in rows], path)
        except csv.Error as error:
            raise _refusal(f"not a valid table: {error}", path, rows.line_num) from error

    return read


def _column(rows: list[tuple[int, list[str]]], path: Path) -> Numbered:
    while rows and not any(cell.strip() for cell in rows[-1][1]):
        rows.pop()
    if not rows:
        return
    names = [name.strip().lower() for name in rows[0][1]]
    if names.count(_FIELD) != 1:
        text = f"the first row has to name one column {_FIELD!r}; it is: {', '.join(map(repr, rows[0][1]))}"
        raise _refusal(text, path, 1)
    place = names.index(_FIELD)
    for line, row in rows[1:]:
        if len(row) > len(names):
            text = (
                f"{len(row)} cells in a table of {len(names)} columns; put a prompt with separators in quotes"
            )
            raise _refusal(text, path, line)
        yield line, row[place] if place < len(row) else ""


def _refusal(problem: str, path: Path, line: int | None = None) -> ConfigError:
    return ConfigError(f"{path}:{line}: {problem}" if line is not None else f"{path}: {problem}")


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
}
