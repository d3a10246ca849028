"""YAML 1.2 into plain values: strings, numbers, booleans, null, lists and mappings with string keys."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner, ScannerError

from hasten._errors import ConfigError

__all__ = ["Tree"]

_TAG = "tag:yaml.org,2002:"
_TEXT = {f"{_TAG}{name}" for name in ("str", "timestamp", "value", "merge")}
"""What is taken as written. Dates are no values of YAML 1.2, and no option is one."""
_VALUES = {f"{_TAG}{name}" for name in ("int", "float", "bool", "null")}
_DEEPEST, _MOST = 32, 50_000
_TOO_DEEP = f"nested deeper than {_DEEPEST} levels"


class _Scanner(Scanner):
    """Refuses a heap of brackets where it opens. The scanner's time grows with the square of their number."""

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:
        if self.flow_level > _DEEPEST:
            raise ScannerError(None, None, _TOO_DEEP, self.reader.get_mark())
        super().fetch_flow_collection_start(TokenClass, to_push)


class Tree:
    """A parsed YAML document.

    Args:
        text: the document.
        source: file name for messages.

    Raises:
        ConfigError: the text is not YAML, holds a key twice, a tag, or more than 50,000 values once its aliases are
            expanded, or is nested deeper than 32 levels. Names the path and the line.
    """

    def __init__(self, text: str, source: str | None = None) -> None:
        self._source, self._seen = source, 0
        yaml = YAML(typ="safe", pure=True)
        yaml.Scanner = _Scanner
        try:
            self._root: Node | None = yaml.compose(text)
        except RecursionError as error:
            raise ConfigError(_TOO_DEEP, source=source) from error
        except YAMLError as error:
            raise _explained(error, text, source) from error
        self._constructor = yaml.constructor
        self.content: Any = None if self._root is None else self._plain(self._root, ())

    def line(self, path: tuple[Hashable, ...]) -> int | None:
        """The line, from 1, of the value at ``path``, or of what is nearest to it."""
        node = self._root
        if node is None:
            return None
        line = _line(node)
        for part in path:
            found = next((item for item in _items(node) if item[0] == part), None)
            if found is None:
                break
            _, line, node = found
        return line

    def _plain(self, node: Node, path: tuple[Hashable, ...]) -> Any:
        self._seen += 1
        if len(path) > _DEEPEST:
            raise self._error(f"{_TOO_DEEP}, or an alias that contains itself", path[:4], node)
        if self._seen > _MOST:
            raise self._error(f"more than {_MOST:,} values, with aliases expanded", path[:4], node)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._plain(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, ScalarNode) and node.tag in _TEXT:
            return node.value
        if isinstance(node, ScalarNode) and node.tag in _VALUES:
            try:
                return self._constructor.construct_object(node)
            except (YAMLError, ValueError) as error:
                raise self._error(f"{node.value[:40]!r} is not a valid value: {error}", path, node) from error
        raise self._error(f"the tag {node.tag} is not supported; remove it", path, node)

    def _mapping(self, node: MappingNode, path: tuple[Hashable, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                parts = self._plain(value, (*path, key.value))
                for part in reversed(parts if isinstance(parts, list) else [parts]):
                    if not isinstance(part, dict):
                        raise self._error("'<<' takes a mapping or a list of mappings", path, key)
                    merged.update(part)
                continue
            if key.tag not in _TEXT:
                text = (
                    f"{key.value!r}, which is not text; use quotes"
                    if isinstance(key, ScalarNode)
                    else "a list"
                )
                raise self._error(f"a key must be a plain word, not {text}", path, key)
            if key.value in own:
                raise self._error(f"{key.value!r} is given twice; keep one of the two", path, key)
            own[key.value] = self._plain(value, (*path, key.value))
        return {**merged, **own}

    def _error(self, message: str, path: tuple[Hashable, ...], node: Node) -> ConfigError:
        return ConfigError(message, path=".".join(map(str, path)), source=self._source, line=_line(node))


def _items(node: Node) -> Iterator[tuple[Hashable, int, Node]]:
    """Key or index, line and value of everything directly in ``node``."""
    if isinstance(node, MappingNode):
        yield from (
            (key.value, _line(key), value) for key, value in node.value if isinstance(key, ScalarNode)
        )
    elif isinstance(node, SequenceNode):
        yield from ((index, _line(item), item) for index, item in enumerate(node.value))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _explained(error: YAMLError, text: str, source: str | None) -> ConfigError:
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return ConfigError(
            f"not valid YAML: control character #x{error.character:04x}", source=source, line=line
        )
    problem, mark = str(error), None
    if isinstance(error, MarkedYAMLError):
        problem, mark = error.problem or problem, error.problem_mark
    return ConfigError(f"not valid YAML: {problem}", source=source, line=mark and mark.line + 1)
