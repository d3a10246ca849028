"""Files of published checkpoints, from a local folder or a hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.extend import CheckpointError

__all__ = ["fetch"]


def fetch(source: str | Path, name: str, **options: Any) -> Path:
    """Path of the file or folder ``name`` in a local folder or a hub repository, downloaded if needed.

    Raises:
        CheckpointError: it does not exist or cannot be downloaded.
    """
    folder = Path(source)
    if folder.is_dir():
        found = folder / name
        if not found.exists():
            raise CheckpointError(
                f"{folder} has no {name}; the files of this variant keep their published names"
            )
        return found
    if isinstance(source, Path) or str(source).count("/") != 1:
        raise CheckpointError(f"{source} is no folder here and no hub repository (owner/name)")
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if Path(name).suffix:
            return Path(hf_hub_download(str(source), name, **options))
        return Path(snapshot_download(str(source), allow_patterns=f"{name}/*", **options)) / name
    except Exception as error:
        raise CheckpointError(f"{name} could not be fetched from {source}: {error}") from error
