"""Training data that is encoded once and stored in the folder of its run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import torch

from hasten import CheckpointError
from hasten.weights import read_weights

__all__ = ["stored_pool"]

PoolT = TypeVar("PoolT")


def stored_pool(kind: type[PoolT], path: Path | None, make: Callable[[], PoolT]) -> PoolT:
    """The pool in the file ``path``; computed and written atomically if there is none.

    Args:
        kind: a dataclass whose fields are tensors.
        path: a file, or ``None`` to store nothing.
        make: encodes the data.

    Raises:
        CheckpointError: the file is damaged or contains another pool.
    """
    if path is None:
        return make()
    if path.exists():
        remedy = "delete it, it will be made again"
        stored = read_weights(path, remedy)
        if odd := set(stored) ^ {field.name for field in fields(kind)}:  # type: ignore[arg-type]
            raise CheckpointError(f"{path}: {min(odd)} is missing or not known; {remedy}")
        return kind(**stored)
    pool = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vars(pool), path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
    return pool
