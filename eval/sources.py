"""Images from folders, zip archives and npz files, in the order of their keys and with every bad one
named.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hasten._errors import ConfigError
from hasten._text import read_lines
from hasten.eval.images import to_rgb

#: Files taken for images. A folder's other files are listed in ``ImageSource.ignored``.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})

#: Suffixes whose images lost something when they were written.
_LOSSY = frozenset({".jpg", ".jpeg", ".webp"})

#: What PIL raises on files that are truncated, no images, or absurdly large.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _decode(data: Path | io.BytesIO, name: str) -> Tensor:
    """One image file as uint8 ``[3, H, W]``.

    Raises:
        ConfigError: with the reason, if it can't be read or converted without guessing.
    """
    try:
        with Image.open(data) as image:
            image.load()
            pixels = np.array(to_rgb(image, name=name))
    except _UNREADABLE as error:
        raise ConfigError(f"{name} is no readable image ({error}).") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


class ImageSource(ABC):
    """Images by key, in a fixed order.

    Attributes:
        name: where they come from, for messages.
        keys: one per image, unique.
        formats: file suffixes among them.
        ignored: files that were not taken for images.
    """

    def __init__(
        self, name: str, keys: Sequence[str], formats: frozenset[str], ignored: Sequence[str] = ()
    ) -> None:
        if not keys:
            raise ConfigError(f"{name} holds no images.")
        self.name, self.keys, self.formats, self.ignored = name, tuple(keys), formats, tuple(ignored)

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def load(self, index: int) -> Tensor:
        """The image at ``index`` as uint8 ``[3, H, W]``.

        Raises:
            ConfigError: with the reason, if it can't be used.
        """

    @property
    def lossy(self) -> bool:
        """Whether some image was stored in a lossy format."""
        return bool(self.formats & _LOSSY)


def _by_key(names: Sequence[str], source: str) -> dict[str, str]:
    """Sorted key -> name; the key is the path without its suffix."""
    found: dict[str, str] = {}
    for name in sorted(names):
        key = str(PurePosixPath(name).with_suffix(""))
        if key in found:
            raise ConfigError(f"{source} holds {found[key]} and {name}: two images of the key {key!r}.")
        found[key] = name
    return found


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def read_manifest(path: Path) -> dict[str, str]:
    """Keys and files of a JSON Lines manifest: objects with ``key`` and, where it isn't ``KEY.png``,
    ``file``.

    Raises:
        ConfigError: names the line that can't be used.
    """
    entries: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, "manifest"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key, file = record["key"], record.get("file", f"{record['key']}.png")
            if isinstance(key, bool) or not isinstance(key, str | int) or not isinstance(file, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"not a JSON object with a key: {line[:60]!r}", source=str(path), line=number
            ) from error
        if str(key) in entries:
            raise ConfigError(f"the key {str(key)!r} appears twice", source=str(path), line=number)
        entries[str(key)] = file
    return entries


class FolderSource(ImageSource):
    """Image files below a folder, in the order of a manifest or sorted by path."""

    def __init__(self, folder: Path, manifest: Path | None = None) -> None:
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder}.")
        if manifest is not None:
            self._files = read_manifest(manifest)
            missing = [name for name in self._files.values() if not (folder / name).is_file()]
            if missing:
                raise ConfigError(
                    f"{len(missing)} of {len(self._files)} images of {manifest} are not in {folder}, the "
                    f"first is "
                    f"{missing[0]}."
                )
            ignored: list[str] = []
        else:
            names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
            visible = [n for n in names if not any(part.startswith(".") for part in PurePosixPath(n).parts)]
            self._files = _by_key([n for n in visible if _is_image(n)], str(folder))
            ignored = sorted(n for n in visible if not _is_image(n))
        self._folder = folder
        formats = frozenset(PurePosixPath(n).suffix.lower() for n in self._files.values())
        super().__init__(str(folder), list(self._files), formats, ignored)

    def load(self, index: int) -> Tensor:
        """See :meth:`ImageSource.load`."""
        name = self._files[self.keys[index]]
        return _decode(self._folder / name, name)


class ZipSource(ImageSource):
    """Image files in a zip archive, sorted by member name."""

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path} can't be read as a zip archive: {error}") from error
        self._path = path
        self._members = _by_key([n for n in names if _is_image(n)], str(path))
        formats = frozenset(PurePosixPath(n).suffix.lower() for n in self._members.values())
        super().__init__(
            str(path), list(self._members), formats, sorted(n for n in names if not _is_image(n))
        )

    def load(self, index: int) -> Tensor:
        """See :meth:`ImageSource.load`. The archive is opened anew, so that worker processes share no
        handle.
        """
        name = self._members[self.keys[index]]
        try:
            with zipfile.ZipFile(self._path) as archive:
                data = archive.read(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{name} is damaged in {self._path} ({error}).") from error
        return _decode(io.BytesIO(data), name)


class ArraySource(ImageSource):
    """uint8 images ``[N, H, W, 3]`` of an array, on disk or in memory, with the keys ``000000``, ``000001``,
    ...
    """

    def __init__(self, images: np.ndarray, name: str = "array") -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ConfigError(
                f"{name} must hold uint8 images [N, H, W, 3], not {images.dtype} {list(images.shape)}."
            )
        self._images = images
        super().__init__(name, [f"{i:06d}" for i in range(len(images))], frozenset({".npz"}))

    @classmethod
    def open(cls, path: Path, member: str = "arr_0") -> ArraySource:
        """Images of an npz file. The member is unpacked to a temporary file and mapped, not held in memory.

        Raises:
            ConfigError: if the file or the member can't be used.
        """
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as packed:
                # Open for as long as the source maps it.
                unpacked = tempfile.NamedTemporaryFile(suffix=".npy")  # noqa: SIM115
                shutil.copyfileobj(packed, unpacked)
                unpacked.flush()
            images = np.load(unpacked.name, mmap_mode="r", allow_pickle=False)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path} holds no images under {member!r}: {error}") from error
        source = cls(images, str(path))
        source._file = unpacked
        return source

    _file: Any = None

    def load(self, index: int) -> Tensor:
        """See :meth:`ImageSource.load`."""
        return torch.from_numpy(np.array(self._images[index])).permute(2, 0, 1)


def open_source(path: str | Path, *, manifest: str | Path | None = None) -> ImageSource:
    """Images of a folder, a zip archive or an npz file (``arr_0``).

    A folder with a ``manifest.jsonl`` is read in its order and must hold all its images; other folders by
    sorted path.

    Args:
        path: folder, ``.zip`` or ``.npz``.
        manifest: another manifest for a folder.

    Raises:
        ConfigError: if nothing is there, nothing in it is an image, or images are missing.
    """
    where = Path(path)
    if where.suffix.lower() == ".zip":
        return ZipSource(where)
    if where.suffix.lower() == ".npz":
        return ArraySource.open(where)
    default = where / "manifest.jsonl"
    chosen = Path(manifest) if manifest is not None else default if default.is_file() else None
    return FolderSource(where, chosen)


def check_paired(first: ImageSource, second: ImageSource) -> None:
    """Refuse sources whose images don't pair up by key or that were stored differently.

    Raises:
        ConfigError: names missing keys, or the formats where only one side is lossy.
    """
    if set(first.keys) != set(second.keys):
        only = [sorted(set(a.keys) - set(b.keys)) for a, b in ((first, second), (second, first))]
        raise ConfigError(
            f"Pairs are needed, but {first.name} has {len(first)} images and {second.name} {len(second)}; "
            f"only in the first: {only[0][:3]}, only in the second: {only[1][:3]}."
        )
    if first.lossy != second.lossy:
        raise ConfigError(
            f"{first.name} holds {sorted(first.formats)} and {second.name} {sorted(second.formats)}: lossy "
            f"compression "
            "of one side alone would be measured as a difference."
        )


@dataclass
class Loaded:
    """What became of a source's images.

    Attributes:
        keys: images delivered so far, in order.
        bad: key -> reason, of images that could not be used.
    """

    keys: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


class _Images(Dataset[tuple[int, Any]]):
    """Decodes in the worker process; a reason instead of an image where that fails."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        index = self._indices[position]
        try:
            return index, self._source.load(index)
        except ConfigError as error:
            return index, str(error)


def _same(items: list[Any]) -> Any:
    return items[0]


def batches(
    source: ImageSource,
    loaded: Loaded,
    *,
    batch_size: int = 32,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    skip_bad: bool = False,
) -> Iterator[Tensor]:
    """Batches of uint8 images ``[B, 3, H, W]``, decoded ahead in worker processes, in order.

    A batch ends early where the image size changes. Without ``skip_bad`` the first bad image stops the
    delivery, the rest is only read through to count the others, and the error names them.

    Args:
        source: where from.
        loaded: filled in as images are delivered; ``keys`` covers the batch in hand.
        batch_size: most images in a batch.
        workers: decoding processes; 0 decodes here.
        indices: images to deliver (a shard), all by default.
        skip_bad: leave bad images out and go on.

    Raises:
        ConfigError: names and counts the images that can't be used, or says that all are bad.
    """
    chosen = range(len(source)) if indices is None else indices
    loader = DataLoader(_Images(source, chosen), batch_size=1, num_workers=workers, collate_fn=_same)
    waiting: list[Tensor] = []
    names: list[str] = []
    for index, image in loader:
        if isinstance(image, str):
            loaded.bad[source.keys[index]] = image
            continue
        if loaded.bad and not skip_bad:
            continue
        if waiting and (len(waiting) == batch_size or waiting[0].shape != image.shape):
            loaded.keys += names
            yield torch.stack(waiting)
            waiting, names = [], []
        waiting.append(image)
        names.append(source.keys[index])
    if loaded.bad and not skip_bad:
        raise ConfigError(_bad_message(source, loaded.bad))
    if waiting:
        loaded.keys += names
        yield torch.stack(waiting)
    if not loaded.keys and len(chosen):
        raise ConfigError(
            f"None of the {len(chosen)} images of {source.name} can be used. {_first(loaded.bad)}"
        )


def _first(bad: Mapping[str, str], count: int = 3) -> str:
    return " ".join(list(bad.values())[:count])


def _bad_message(source: ImageSource, bad: Mapping[str, str]) -> str:
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return (
        f"{len(bad)} of {len(source)} images of {source.name} can't be used: {_first(bad)}{more} Repair "
        f"them, or leave "
        "them out with skip_bad."
    )
