"""Reading files that someone else wrote: bounded, plain data only, and never outside the folder they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hasten import _text
from hasten._errors import CheckpointError, ConfigError
from hasten._records import unseal

__all__ = ["as_fields", "check_file", "inside", "problems", "read_fields", "read_json", "read_text"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_MOST = 64 * 2**20
_POINTER = b"version https://git-lfs.github.com/spec/"


def check_file(path: Path, remedy: str, *, most: int | None = None) -> int:
    """Refuse what is no file with something in it, before any of it is read.

    Args:
        path: the file.
        remedy: what the user can do, for the message.
        most: bytes it may have.

    Returns:
        Its bytes.

    Raises:
        CheckpointError: it is missing, a folder, a pipe or a device, empty, too large, or the pointer of a large file
            that Git LFS has not fetched.
    """
    try:
        if not path.is_file():
            what = "it is not a regular file" if path.exists() else "there is no such file"
            raise CheckpointError(f"{path} cannot be read: {what}; {remedy}")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {remedy}") from error
    if not size:
        raise CheckpointError(f"{path} cannot be read: it is empty; {remedy}")
    if head == _POINTER:
        raise CheckpointError(
            f"{path} cannot be read: it is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`, or "
            f"{remedy}"
        )
    if most is not None and size > most:
        raise CheckpointError(
            f"{path} cannot be read: it has {size} bytes, and at most {most} are expected; {remedy}"
        )
    return size


def read_text(path: Path, remedy: str, *, most: int = _MOST) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        CheckpointError: see :func:`check_file`; or it is no text.
    """
    check_file(path, remedy, most=most)
    try:
        return _text.read_text(path, "file", largest=most)
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be read: {error.message}; {remedy}") from error


def read_json(path: Path, what: str, remedy: str, *, most: int = _MOST) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        path: the file.
        what: what it should hold, for the message (``"the spectrum"``).
        remedy: what the user can do, for the message.
        most: bytes it may have.

    Raises:
        CheckpointError: see :func:`read_text`; or it is no JSON, no mapping, or holds NaN or infinity.
    """
    text = read_text(path, remedy, most=most)
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot read {what}: it is not valid JSON ({error}); {remedy}"
        ) from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise CheckpointError(f"{path}: cannot read {what}: expected a mapping, found a {found}; {remedy}")
    return content


def read_fields(
    path: Path, kind: type[ModelT], what: str, remedy: str, *, sealed: bool = False, most: int = _MOST
) -> ModelT:
    """The content of a JSON file as a model; arguments are those of :func:`read_json`.

    Args:
        sealed: whether :func:`hasten.files.seal` wrote it, so that its checksum has to match.

    Raises:
        CheckpointError: see :func:`read_json` and :func:`as_fields`; or the checksum does not match.
    """
    content = read_json(path, what, remedy, most=most)
    return as_fields(unseal(content, path, remedy) if sealed else content, kind, path, what, remedy)


def as_fields(content: Mapping[str, Any], kind: type[ModelT], path: Path, what: str, remedy: str) -> ModelT:
    """A mapping read from ``path`` as a model. Types are taken strictly: no text or boolean passes for a number.

    Raises:
        CheckpointError: a field is missing or wrong, each named by its dotted path.
    """
    try:
        return kind.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path}: cannot read {what}: {problems(error)}; {remedy}") from error


def problems(error: ValidationError, most: int = 8) -> str:
    """What is wrong with the fields of a model, each by its dotted path."""
    found = [f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in error.errors()]
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more


def inside(folder: Path, name: str, source: Path, remedy: str) -> Path:
    """The file ``name`` of a folder, where ``name`` was read from a file: it may not lead anywhere else.

    The cache of the hub, and an editable installation, are trees of links. So a file may also lie in the folder where
    ``source`` itself really lies.

    Args:
        folder: that the name is relative to.
        name: relative path, with forward slashes.
        source: the file that says so, for the message.
        remedy: what the user can do, for the message.

    Raises:
        CheckpointError: the name is absolute, leads out of the folder, or is that of a link that does.
    """
    path = Path(name)
    if not name or "\\" in name or "\0" in name or path.is_absolute() or path.drive or ".." in path.parts:
        raise CheckpointError(f"{source} names {name!r}, which is not a path inside {folder}; {remedy}")
    try:
        real = (folder / path).resolve()
        homes = (folder.resolve(), source.resolve().parent)
    except (OSError, RuntimeError) as error:  # a loop of links
        raise CheckpointError(f"{folder / path} cannot be found: {error}; {remedy}") from error
    if not any(real.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{folder / path}, named in {source}, is a link to {real}, outside the folder; {remedy}"
        )
    return folder / path


def _refuse(constant: str) -> Any:
    raise ValueError(f"it contains {constant}, which is not a number")
