"""Outputs of a command: proven to be writable, and held against other runs until the command ends."""

from __future__ import annotations

from pathlib import Path

import typer

from hasten._generation import prepare_folder
from hasten._lock import owned

__all__ = ["hold_file", "hold_folder"]


def hold_folder(context: typer.Context, folder: str | Path, option: str = "--out") -> Path:
    """Create an output folder and hold it, before any work is spent.

    Args:
        context: of the command in progress.
        folder: the folder.
        option: the command-line option that names it.

    Raises:
        ConfigError: it cannot be written.
        ConflictError: another run writes into it.
    """
    folder = prepare_folder(folder, option)
    context.with_resource(owned(folder))
    return folder


def hold_file(context: typer.Context, file: str | Path) -> Path:
    """Create the folder of an output file and hold the file, before any work is spent.

    Raises:
        ConfigError: the folder cannot be written.
        ConflictError: another run writes the file.
    """
    file = Path(file)
    prepare_folder(file.parent)
    context.with_resource(owned(file))
    return file
