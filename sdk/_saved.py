"""Finished pictures on disk: written whole, without loss, and recognised by a checksum when a run goes on."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hasten._records import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["is_intact", "picture_files", "save_frames"]


def picture_files(path: Path) -> list[Path]:
    """The file itself, or the frames of a video in order."""
    return sorted(path.glob("*.png")) if path.is_dir() else [path]


def save_frames(frames: Sequence[Image], folder: Path, stem: str) -> tuple[Path, str]:
    """Write a picture as ``stem.png``, or the frames of a video as a folder ``stem`` of PNGs.

    Whatever was there under either name is replaced, frames of a longer video too.

    Returns:
        The file or folder, and the SHA-256 of all files one after the other.

    Raises:
        HastenError: if the disk refuses.
    """
    single, several = folder / f"{stem}.png", folder / stem
    shutil.rmtree(several, ignore_errors=True)
    if len(frames) == 1:
        names = [single]
    else:
        single.unlink(missing_ok=True)
        names = [several / f"{number:05d}.png" for number in range(len(frames))]
    names[0].parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, frame in zip(names, frames, strict=True):
        buffer = io.BytesIO()
        frame.save(buffer, format="PNG")
        write_atomically(name, buffer.getvalue())
        digest.update(buffer.getvalue())
    return single if len(frames) == 1 else several, digest.hexdigest()


def is_intact(path: Path, sha256: str | None) -> bool:
    """Whether a picture, or every frame of a video, is as it was written.

    Args:
        path: the file or folder.
        sha256: its checksum; without one (older records) it is enough that all of it can be read.
    """
    files, digest = picture_files(path), hashlib.sha256()
    try:
        for file in files:
            content = file.read_bytes()
            digest.update(content)
            if sha256 is None:
                _decode(content)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged pictures
        return False
    return bool(files) if sha256 is None else digest.hexdigest() == sha256


def _decode(content: bytes) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image.load()
