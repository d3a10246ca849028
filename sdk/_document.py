"""Reading configuration files: YAML, TOML or JSON into plain values, with the line each value stands on (YAML)."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hasten._errors import ConfigError

__all__ = ["SUFFIXES", "Document", "read_document"]

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
"""File names that are taken for configuration files."""

Path_ = tuple[Hashable, ...]


@dataclass(frozen=True)
class Document:
    """Parsed content and where its values stand.

    Args:
        content: the top-level value.
        source: file name for messages, ``None`` for values that came from Python.
        lines: line number, from 1, of every value by its path, for formats that tell.
    """

    content: Any
    source: str | None = None
    lines: dict[Path_, int] = field(default_factory=dict)

    def error(self, message: str, path: Path_ = ()) -> ConfigError:
        """A :class:`ConfigError` that names ``path`` and the nearest line known for it."""
        line = next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)
        return ConfigError(message, path=".".join(map(str, path)), source=self.source, line=line)


def read_document(path: str | Path) -> Document:
    """Read a configuration file; the suffix names the format.

    Raises:
        ConfigError: the file is missing, unreadable, malformed, or holds a key twice.
    """
    path = Path(path)
    reader = {".yaml": _yaml, ".yml": _yaml, ".toml": _toml, ".json": _json}.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"cannot tell the format of {str(path)!r}; name it {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration file {str(path)!r}: {error}") from error
    return reader(text, str(path))


def _yaml(text: str, source: str) -> Document:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = Document(yaml.safe_load(text), source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"not valid YAML: {problem}", source=source, line=mark and mark.line + 1) from error
    if node is not None:
        _mark(node, (), document)
    return document


def _mark(node: yaml.Node, path: Path_, document: Document, line: int | None = None) -> None:
    """Note the line of ``node`` and everything in it, and refuse repeated keys, which YAML would drop unseen."""
    document.lines[path] = line or node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _mark(item, (*path, index), document)
    elif isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            name, here = key.value, key.start_mark.line + 1
            if not isinstance(name, Hashable):
                raise ConfigError("a key must be a plain word", source=document.source, line=here)
            if name in seen:
                text = f"{name!r} is given twice; keep one of the two"
                raise ConfigError(text, path=".".join(map(str, path)), source=document.source, line=here)
            seen.add(name)
            _mark(value, (*path, name), document, here)


def _toml(text: str, source: str) -> Document:
    try:
        import tomllib
    except ModuleNotFoundError as error:  # Python 3.10
        remedy = "TOML files need Python 3.11 or later; write YAML or JSON"
        raise ConfigError(remedy, source=source) from error
    try:
        return Document(tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", source=source) from error


def _json(text: str, source: str) -> Document:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(items)
        if len(content) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{twice!r} is given twice; keep one of the two", source=source)
        return content

    try:
        return Document(json.loads(text, object_pairs_hook=pairs), source)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", source=source, line=error.lineno) from error
