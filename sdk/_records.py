"""Files that hold what was written whatever happens to the process or the disk: lines that only grow, sealed JSON."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hasten._errors import CheckpointError, HastenError

__all__ = ["append_lines", "read_records", "read_sealed", "repair", "seal", "unseal", "write_atomically"]

_SEAL = "sha256"


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records, one a line, all of them or none, and wait until they are on the disk.

    Raises:
        HastenError: if they cannot be written (a full disk); the file then is as it was before.
    """
    data = "".join(json.dumps(record, sort_keys=True, allow_nan=False) + "\n" for record in records).encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            _write_all(file.fileno(), data)
            os.fsync(file.fileno())
        except OSError as error:
            # A full disk takes part of a write and refuses the rest; half a line must not stay behind.
            file.truncate(end)
            raise HastenError(
                f"{path} cannot be extended ({error.strerror}); finished results are kept. Free some "
                "disk space and run the same command again to continue"
            ) from error


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a file; a last line without its newline (a kill in the middle of a write) is not one.

    Raises:
        CheckpointError: names the first line that is whole and yet no JSON object.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged_line(path, number, line) from error
    if not isinstance(record, dict):
        raise _damaged_line(path, number, line)
    return record


def _damaged_line(path: Path, number: int, line: bytes) -> CheckpointError:
    return CheckpointError(
        f"{path}:{number} is damaged: {line[:60]!r} is not a JSON object; remove the line to compute its "
        "result again"
    )


def repair(path: Path) -> None:
    """Cut off a torn last line, so that the next record does not continue it. Only the file's writer may do
    this.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def seal(content: Mapping[str, Any]) -> bytes:
    """A JSON object as a file's content, with a checksum of it inside."""
    plain = json.loads(json.dumps(content, default=str))
    return (json.dumps({**plain, _SEAL: _checksum(plain)}, indent=2, sort_keys=True) + "\n").encode()


def read_sealed(path: Path, remedy: str, *, old: bool = True) -> dict[str, Any] | None:
    """What :func:`seal` was given, ``None`` if there is no file.

    Args:
        path: the file.
        remedy: what to do where it is damaged, as the end of a sentence.
        old: whether a file without a checksum is accepted.

    Raises:
        CheckpointError: if it is no JSON object, or another one than was written.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is damaged (a {type(content).__name__} instead of a mapping); {remedy}"
        )
    return unseal(content, path, remedy, old=old)


def unseal(content: Mapping[str, Any], path: Path, remedy: str, *, old: bool = True) -> dict[str, Any]:
    """What :func:`seal` was given, from the JSON object it made; arguments are those of :func:`read_sealed`.

    Raises:
        CheckpointError: it is another one than was written.
    """
    plain = dict(content)
    found = plain.pop(_SEAL, None)
    if found != _checksum(plain) and not (old and found is None):
        raise CheckpointError(f"{path} is damaged or was edited (its checksum does not match); {remedy}")
    return plain


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """A file that appears complete or not at all.

    Raises:
        HastenError: if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise HastenError(
            f"{path} cannot be written ({error.strerror}); finished results are kept. Free some "
            "disk space and run the same command again to continue"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
