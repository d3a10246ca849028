"""Configuration files in YAML, TOML or JSON, as plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten._errors import ConfigError
from hasten._text import read_lines, read_text

if TYPE_CHECKING:
    from hasten._yaml import Tree

__all__ = ["SUFFIXES", "Document", "parse_json", "parse_yaml", "read_document", "read_json_lines"]

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
"""File names that are taken for configuration files."""

_DEEPEST = 32
_TOO_DEEP = f"nested deeper than {_DEEPEST} levels"
_LONG_KEY = re.compile(
    rf"""^[ \t\[]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{_DEEPEST}}}""", re.MULTILINE
)
"""A dotted TOML key of too many parts. Parsing one takes time that grows with the square of their number."""
_LARGEST_INTEGER = 2**64
_WHAT = "configuration file"


class Document:
    """Parsed content and where it came from.

    Args:
        content: the top-level value.
        source: file name for messages, ``None`` for values that came from Python.
        tree: the YAML document, which knows the lines.
    """

    def __init__(self, content: Any, source: str | None = None, tree: Tree | None = None) -> None:
        self.content, self.source, self._tree = content, source, tree

    def error(self, message: str, path: tuple[Hashable, ...] = ()) -> ConfigError:
        """A :class:`ConfigError` that names ``path`` and the nearest line known for it."""
        line = self._tree.line(path) if self._tree is not None else None
        return ConfigError(message, path=".".join(map(str, path)), source=self.source, line=line)


def read_document(path: str | Path) -> Document:
    """Read a configuration file; the suffix names the format.

    Raises:
        ConfigError: the file is missing, unreadable, malformed, or holds a key twice or a value that is no plain one.
    """
    path = Path(path)
    reader = {".yaml": _yaml, ".yml": _yaml, ".toml": _toml, ".json": _json}.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"cannot tell the format of {str(path)!r}; name it {', '.join(SUFFIXES)}")
    # YAML is read at some 200 KB a second.
    largest = 2**18 if reader is _yaml else 2**22
    return reader(read_text(path, _WHAT, largest=largest), str(path))


def parse_yaml(text: str) -> Any:
    """The plain value of a line of YAML, as the command line takes options.

    Raises:
        ConfigError: it is not valid YAML 1.2.
    """
    return _yaml(text, None).content


def parse_json(text: str, source: str | None = None) -> Any:
    """The plain value of a JSON text.

    Args:
        text: the JSON text.
        source: file name for messages.

    Raises:
        ConfigError: not JSON, a key twice, NaN or infinity, nested too deeply, or an integer of more than 64 bits.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(items)
        if len(content) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{twice!r} is given twice; keep one of the two", source=source)
        return content

    def constant(name: str) -> Any:
        raise ConfigError(f"not valid JSON: {name} is not a number", source=source)

    try:
        document = Document(json.loads(text, object_pairs_hook=pairs, parse_constant=constant), source)
    except json.JSONDecodeError as error:
        line = error.lineno if source is not None else None
        raise ConfigError(f"not valid JSON: {error.msg}", source=source, line=line) from error
    except RecursionError as error:
        raise ConfigError(_TOO_DEEP, source=source) from error
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigError(f"not valid JSON: {error}", source=source) from error
    _check_plain(document)
    return document.content


def _json(text: str, source: str | None) -> Document:
    return Document(parse_json(text, source), source)


def _yaml(text: str, source: str | None) -> Document:
    from hasten._yaml import Tree  # only who has a YAML file pays for its import

    tree = Tree(text, source)
    document = Document(tree.content, source, tree)
    _check_plain(document)
    return document


def _toml(text: str, source: str | None) -> Document:
    import tomllib

    if long := _LONG_KEY.search(text):
        raise ConfigError(_TOO_DEEP, source=source, line=text.count("\n", 0, long.start()) + 1)
    try:
        document = Document(tomllib.loads(text), source)
    except RecursionError as error:
        raise ConfigError(_TOO_DEEP, source=source) from error
    except ValueError as error:  # also an integer of thousands of digits
        raise ConfigError(f"not valid TOML: {error}", source=source) from error
    _check_plain(document)
    return document


def _check_plain(document: Document) -> None:
    """Refuse what is no plain value, or not one that can be kept: dates, huge integers, halves of characters."""
    waiting: list[tuple[tuple[Hashable, ...], Any]] = [((), document.content)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > _DEEPEST:
            raise document.error(_TOO_DEEP, path[:4])
        if isinstance(value, dict):
            waiting += [((*path, key), item) for key, item in value.items()]
            _check_text("".join(map(str, value)), path, document)
        elif isinstance(value, list):
            waiting += [((*path, index), item) for index, item in enumerate(value)]
        elif isinstance(value, str):
            _check_text(value, path, document)
        elif isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
            raise document.error("an integer of more than 64 bits", path)
        elif not isinstance(value, int | float | None):
            raise document.error(
                f"a {type(value).__name__} cannot be the value of an option; use quotes to make it text", path
            )


def _check_text(text: str, path: tuple[Hashable, ...], document: Document) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as reason:
        raise document.error("half of a surrogate pair is not a character", path) from reason


def read_json_lines(path: str | Path, what: str) -> list[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of a JSON Lines file that is not empty.

    Args:
        path: the file.
        what: what it is, for messages (``"prompts file"``).

    Raises:
        ConfigError: the file cannot be read, or a line is no JSON object. Names the line.
    """
    found = []
    for number, line in enumerate(read_lines(path, what), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ConfigError as error:
            raise ConfigError(f"{path}:{number}: {error}, in {line[:60]!r}") from error
        if not isinstance(record, dict):
            raise ConfigError(
                f"{path}:{number}: the {what} must have a JSON object on each line, not {line[:60]!r}"
            )
        found.append((number, record))
    return found
