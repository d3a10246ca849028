"""Text files of the user's: what they may be and how they are decoded, the same for every command."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hasten._errors import ConfigError

__all__ = ["read_lines", "read_text"]

_LARGEST = 256 * 2**20
_ENCODING_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: str | Path, what: str, *, largest: int = _LARGEST, pipes: bool = False) -> str:
    """The text of a UTF-8 file, without a byte-order mark and with ``"\\n"`` at every line end.

    Args:
        path: the file.
        what: what it is, for messages (``"prompts file"``).
        largest: most bytes that are read.
        pipes: whether it may be a pipe, as ``<(command)`` of a shell makes one.

    Raises:
        ConfigError: there is no such file, it is a folder, a device or a pipe, it is larger than ``largest``, or it
            is not UTF-8 text. Names the file, and the line where there is one.
    """
    data = _read_bytes(Path(path), what, largest, pipes)
    for mark, name in _ENCODING_MARKS.items():
        if data.startswith(mark):
            raise ConfigError(f"the {what} is {name}; save it as UTF-8", source=str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"the {what} is not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8"
        raise ConfigError(problem, source=str(path), line=line) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"the {what} is not text: it holds a zero byte", source=str(path), line=line)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path, what: str, *, pipes: bool = False) -> list[str]:
    """The lines of :func:`read_text`; empty ones at the end are left out.

    A line ends at a line feed, a carriage return or both. The other characters at which ``str.splitlines`` splits
    (form feed, U+0085, U+2028, ...) are part of a line.
    """
    lines = read_text(path, what, pipes=pipes).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _read_bytes(path: Path, what: str, largest: int, pipes: bool) -> bytes:
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            mode = os.fstat(handle).st_mode
            if not (stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode))):
                kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"
                raise ConfigError(f"the {what} is a {kind}, not a file", source=str(path))
            if hasattr(os, "set_blocking"):
                os.set_blocking(handle, True)
            data = file.read(largest + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read {what} {str(path)!r}: {reason}") from error
    if len(data) > largest:
        raise ConfigError(
            f"the {what} is larger than {_size(largest)}, the most that is read", source=str(path)
        )
    return data


def _size(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count // 2**10} KiB"
