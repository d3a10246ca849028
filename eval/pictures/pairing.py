"""Which prompt belongs to which picture: the order of file names, and manifests that say it name by name."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from hasten.extend import ConfigError
from hasten.files import parse_json, read_lines, read_text

__all__ = ["Manifest", "Order", "ambiguity", "natural_key", "sort_names"]


class Order(StrEnum):
    """How file names are sorted: numbers in them by value, or character by character."""

    natural = "natural"
    lexicographic = "lexicographic"


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key in which runs of digits compare by value: ``img_2`` comes before ``img_10``."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    # Digits go by length and then by character: Python makes no integers of very long runs.
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def sort_names(names: Sequence[str], order: Order | None = None) -> list[str]:
    """File names in the order asked for, natural order by default."""
    lexicographic = sorted(names)
    return lexicographic if order is Order.lexicographic else sorted(lexicographic, key=natural_key)


def ambiguity(names: Sequence[str]) -> str:
    """Why prompts given by position can't be paired with these file names; empty if they can.

    Names that are plain numbers (``0.png`` ... ``11.png``) are counted, whatever their width. Other names whose
    natural and lexicographic order differ could mean either.
    """
    natural, lexicographic = sort_names(names), sort_names(names, Order.lexicographic)
    if natural == lexicographic:
        return ""
    folders = sorted({str(PurePosixPath(name).parent) for name in names})
    numbered = all(re.fullmatch(r"[0-9]+", PurePosixPath(name).stem) for name in names)
    if numbered and folders == sorted(folders, key=natural_key):
        return ""
    at = next(i for i, (a, b) in enumerate(zip(natural, lexicographic)) if a != b)
    return (
        f"picture {at + 1} is {natural[at]} in natural order and {lexicographic[at]} in lexicographic "
        "order, and the order of the prompts is not known; give --order natural or --order "
        "lexicographic, or --manifest FILE with the prompt of each name"
    )


_ABSENT = object()
_WHAT = "manifest"
_Numbered = Iterator[tuple[int | None, Any]]
"""Line number, where the format has one, and what stands where an entry should."""


@dataclass(frozen=True)
class _Entry:
    """A line of a manifest: ``key`` is what the picture is called, ``file`` where it is, one of them may be empty."""

    key: str
    file: str
    prompt: str | None
    line: int | None


class Manifest:
    """A list of pictures in their order, with their prompts where it has them.

    Args:
        path: of the file, for messages.
        entries: in order.

    Raises:
        ConfigError: if a key appears twice, or only some entries have a prompt.
    """

    def __init__(self, path: Path, entries: Sequence[_Entry]) -> None:
        self.path, self._entries = path, tuple(entries)
        seen: set[str] = set()
        for entry in self._entries:
            name = entry.key or entry.file
            if name in seen:
                raise ConfigError(f"the key {name!r} appears twice", source=str(path), line=entry.line)
            seen.add(name)
        bare = [entry for entry in self._entries if entry.prompt is None]
        if bare and len(bare) < len(self._entries):
            raise ConfigError(
                f"{bare[0].key or bare[0].file!r} has no prompt, and others have one",
                source=str(path),
                line=bare[0].line,
            )
        self.has_prompts = bool(self._entries) and not bare

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        ``.jsonl`` and ``.ndjson``: an object a line with ``key`` or ``file`` (also ``file_name``) and, optionally,
        ``prompt`` (also ``text``), as ``hasten generate`` and Hugging Face image folders have them. ``.json``: an
        object ``{name: prompt}``, or a list of such objects. ``.csv`` and ``.tsv``: columns of these names. A name is a
        file's path with or without its ending.

        Raises:
            ConfigError: names the line that can't be used.
        """
        suffix = path.suffix.lower()
        reader = _READERS.get(suffix)
        if reader is None:
            raise ConfigError(f"{path} is not a manifest: its name has to end in {', '.join(_READERS)}")
        entries = [_entry(path, line, fields) for line, fields in reader(path)]
        return cls(path, entries)

    def resolve(
        self, source: str, pictures: Sequence[str], exists: Callable[[str], bool]
    ) -> tuple[dict[str, str], dict[str, str] | None]:
        """Key -> file and key -> prompt, in the manifest's order.

        Args:
            source: where the pictures are, for messages.
            pictures: their names.
            exists: whether a file is there (also one that is not listed, such as a hidden one).

        Raises:
            ConfigError: counts what is not there, or names a picture that two entries mean.
        """
        stems: dict[str, list[str]] = {}
        for name in pictures:
            stems.setdefault(_stem(name), []).append(name)
        files: dict[str, str] = {}
        prompts: dict[str, str] = {}
        missing: list[str] = []
        for entry in self._entries:
            name = entry.file or entry.key
            alike = [] if entry.file else stems.get(name, [])
            choices = (name, f"{name}.png", *(alike if len(alike) == 1 else ()))
            file = next((choice for choice in choices if exists(choice)), "")
            if not file:
                missing.append(name if _is_picture(name) else f"{name}.png")
                continue
            key = entry.key if entry.key and entry.key != file else _stem(file)
            if key in files:
                raise ConfigError(
                    f"{name!r} is the picture {files[key]}, which is listed twice",
                    source=str(self.path),
                    line=entry.line,
                )
            files[key], prompts[key] = file, entry.prompt or ""
        if missing:
            raise ConfigError(
                f"{len(missing)} of {len(self._entries)} images of {self.path} are not in {source}, the first is "
                f"{missing[0]}"
            )
        return files, prompts if self.has_prompts else None


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _is_picture(name: str) -> bool:
    from hasten.files import picture_suffixes

    return PurePosixPath(name).suffix.lower() in picture_suffixes()


def _entry(path: Path, line: int | None, fields: Any) -> _Entry:
    def given(*names: str) -> str:
        value = next((fields[name] for name in names if name in fields), "")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise ConfigError(f"{names[0]} must be text, not {value!r}", source=str(path), line=line)
        return value

    if not isinstance(fields, Mapping) or not (given("key") or given("file", "file_name")):
        raise ConfigError(f"not a JSON object with a key: {str(fields)[:60]!r}", source=str(path), line=line)
    prompt = next((fields[name] for name in ("prompt", "text") if name in fields), _ABSENT)
    if prompt is _ABSENT:
        return _Entry(given("key"), given("file", "file_name"), None, line)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"the prompt must be text, not {prompt!r}", source=str(path), line=line)
    return _Entry(given("key"), given("file", "file_name"), prompt.strip(), line)


def _json_lines(path: Path) -> _Numbered:
    for number, line in enumerate(read_lines(path, _WHAT), 1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line)
        except ConfigError as error:
            text = f"not a JSON object with a key: {line[:60]!r} ({error})"
            raise ConfigError(text, source=str(path), line=number) from error


def _json(path: Path) -> _Numbered:
    document = parse_json(read_text(path, _WHAT), str(path))
    if isinstance(document, list):
        yield from ((None, fields) for fields in document)
    elif isinstance(document, dict):
        yield from ((None, {"key": name, "prompt": prompt}) for name, prompt in document.items())
    else:
        raise ConfigError("expected {name: prompt}, or a list of objects", source=str(path))


def _table(delimiter: str) -> Callable[[Path], _Numbered]:
    def read(path: Path) -> _Numbered:
        text = io.StringIO(read_text(path, _WHAT), newline="")
        rows = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            if not {"key", "file", "file_name"} & set(rows.fieldnames or ()):
                raise ConfigError(
                    "the first line must name the columns: file (or key) and prompt", source=str(path), line=1
                )
            for row in rows:
                if None in row or None in row.values():
                    raise ConfigError(
                        "more or fewer fields than columns", source=str(path), line=rows.line_num
                    )
                yield rows.line_num, row
        except csv.Error as error:
            raise ConfigError(f"not a table ({error})", source=str(path), line=rows.line_num) from error

    return read


_READERS: dict[str, Callable[[Path], _Numbered]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
}
