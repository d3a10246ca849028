"""One run at a time writes into an output: a lock file that names its owner, and that no crash leaves locked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hasten._errors import ConflictError, HastenError

__all__ = ["owned"]

_PATIENCE = 1.0
"""Seconds for a process that was just killed to be gone."""


@contextmanager
def owned(output: str | Path, rank: int | None = None) -> Iterator[None]:
    """Hold an output against other runs. The operating system lets go of it when the process ends, however it ends.

    A thread that holds an output already may hold it again. The lock file lies in a folder, and beside a file.

    Args:
        output: a folder that exists, or a file, whether or not it exists.
        rank: this process among those of one launch, each of which has a lock of its own; as the launcher says
            unless given.

    Raises:
        ConflictError: another run holds it; its process and machine are named.
        HastenError: the lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    path = _lock_file(Path(output), _rank() if rank is None else rank)
    lock = FileLock(path, timeout=_PATIENCE, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConflictError(
            f"{output} is being written by {_owner(path)}: wait until that run has ended, or choose another output"
        ) from error
    except OSError as error:
        raise HastenError(f"{output} cannot be locked ({path}: {error.strerror or error})") from error
    try:
        if lock.lock_counter == 1:
            with suppress(OSError):  # on a full disk the lock holds all the same
                path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", "utf-8")
        yield
    finally:
        if lock.lock_counter == 1:  # whoever waits for the file that is gone takes a new one
            with suppress(OSError):
                path.unlink()
        lock.release()


def _rank() -> int:
    from hasten._processes import Processes

    return Processes.from_environment().rank


def _lock_file(output: Path, rank: int) -> Path:
    # Resolved, so that two names of one output have one lock.
    output = Path(os.path.realpath(output))
    number = f".{rank}" if rank else ""
    if output.is_dir():
        return output / f".hasten{number}.lock"
    return output.with_name(f".{output.name}{number}.lock")


def _owner(path: Path) -> str:
    pid, host = "", ""
    with suppress(OSError, ValueError):
        pid, host = path.read_text("utf-8").split("\n")[:2]
    return f"process {pid} on {host}" if pid and host else "another process"
