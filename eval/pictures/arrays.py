"""Pictures in numpy files: npy, and npz as evaluation batches have it."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.eval.pictures.sources import ImageSource
from hasten.extend import ConfigError

__all__ = ["ArraySource", "npz_members", "what_is_wrong"]

#: Where evaluation batches have their pictures.
PICTURES = "arr_0"


class ArraySource(ImageSource):
    """uint8 images ``[N, H, W, 3]`` of an array, on disk or in memory, with the keys ``000000``, ``000001``,
    ...
    """

    def __init__(self, images: np.ndarray, name: str = "array") -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ConfigError(
                f"{name} must hold uint8 images [N, H, W, 3], not {images.dtype} {list(images.shape)}"
            )
        if 0 in images.shape[1:]:
            raise ConfigError(f"{name} holds images without pixels: {list(images.shape)}")
        self._images = images
        super().__init__(name, [f"{i:06d}" for i in range(len(images))], frozenset({".npz"}))

    @classmethod
    def open(cls, path: Path, member: str = PICTURES) -> ArraySource:
        """Images of an npy file, mapped, or of an npz file: its member is unpacked to a temporary file and mapped.

        Raises:
            ConfigError: if the file or the member can't be used.
        """
        if path.suffix.lower() == ".npy":
            return cls(_mapped(path, path), str(path))
        held = npz_members(path)
        if member not in held:
            raise ConfigError(
                f"{path} holds no images under {member!r}, only {', '.join(sorted(held)) or 'nothing'}"
            )
        # Open for as long as the source maps it.
        unpacked = tempfile.NamedTemporaryFile(suffix=".npy")  # noqa: SIM115
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as packed:
                shutil.copyfileobj(packed, unpacked)
                unpacked.flush()
        except Exception as error:  # zlib.error, BadZipFile, RuntimeError (encrypted), ...
            raise ConfigError(f"{path} holds no images under {member!r}: {error}") from error
        source = cls(_mapped(Path(unpacked.name), path), str(path))
        source._file = unpacked
        return source

    _file: Any = None

    def load(self, index: int) -> Tensor:
        """See :meth:`ImageSource.load`."""
        return torch.from_numpy(np.array(self._images[index])).permute(2, 0, 1)


def _mapped(path: Path, named: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # EOFError, ValueError, OSError: as the damage is
        raise ConfigError(f"{named} can't be read as an array: {what_is_wrong(path, error)}") from error
    return array


def npz_members(path: Path) -> frozenset[str]:
    """Names of the arrays in an npz file.

    Raises:
        ConfigError: if it is missing, damaged, or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except Exception as error:  # a damaged directory makes zipfile raise almost anything
        raise ConfigError(f"{path} can't be read as an npz file: {what_is_wrong(path, error)}") from error


def what_is_wrong(path: Path, error: Exception) -> str:
    """Why a numpy file can't be read: what it holds instead where that is plain, else the reason of ``error``."""
    try:
        with path.open("rb") as file:
            head = file.read(40)
    except OSError as failure:
        return failure.strerror or str(failure)
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    return f"it is damaged or of another kind ({error or type(error).__name__})"
