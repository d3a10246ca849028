"""Images from folders, zip archives, npz and npy files, in a known order and with every bad one named."""

from __future__ import annotations

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from hasten.eval.pictures.pairing import Manifest, Order, ambiguity, sort_names
from hasten.extend import ConfigError
from hasten.files import Listing, describe_unread, list_folder, list_names, read_rgb

#: Suffixes whose images lost something when they were written (or may have).
_LOSSY = frozenset(
    {".avif", ".avifs", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg"}
    | {".jpx", ".mpo", ".webp"}
)

#: No picture that Pillow agrees to decode has a larger file.
_MAX_BYTES = 2**30

_FOREIGN = "pictures that the manifest does not list"


def read_image(data: Path | io.BytesIO, name: str) -> Tensor:
    """One image file as uint8 ``[3, H, W]``.

    Raises:
        ConfigError: says under ``name`` why it can't be used.
    """
    return torch.from_numpy(np.array(read_rgb(data, name))).permute(2, 0, 1)


class ImageSource(ABC):
    """Images by key, in a fixed order.

    Attributes:
        name: where they come from, for messages.
        keys: one per image, unique.
        formats: file suffixes among them.
        ignored: text and the like beside them.
        unread: file -> why it is not read (a broken link, a format that is not known, ...).
        prompts: key -> prompt, where a manifest has them.
        ambiguity: why prompts can't be paired with the images by their place; empty if they can.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        formats: frozenset[str],
        *,
        ignored: Sequence[str] = (),
        unread: Mapping[str, str] | None = None,
        prompts: Mapping[str, str] | None = None,
        ambiguity: str = "",
    ) -> None:
        self.unread = dict(unread or {})
        if not keys:
            left = f" Not read: {describe_unread(self.unread)}." if self.unread else ""
            raise ConfigError(f"{name} holds no images.{left}")
        self.name, self.keys, self.formats, self.ignored = name, tuple(keys), formats, tuple(ignored)
        self.prompts, self.ambiguity = prompts, ambiguity

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

    @property
    def left_out(self) -> str:
        """What is not read, in words; empty if everything is."""
        return f"{self.name}: not read: {describe_unread(self.unread)}" if self.unread else ""


class _FileSource(ImageSource):
    """Image files by name, in the order of a manifest or sorted."""

    def __init__(self, name: str, listing: Listing, manifest: Path | None, order: Order | None) -> None:
        unread, prompts, unclear = dict(listing.unread), None, ""
        if manifest is not None:
            if order is not None:
                raise ConfigError(f"{manifest} says the order of {name}; leave out the order")
            self._files, prompts = Manifest.read(manifest).resolve(name, listing.pictures, self._exists)
            named = set(self._files.values())
            unread |= {other: _FOREIGN for other in listing.pictures if other not in named}
        else:
            self._files = _by_key(sort_names(listing.pictures, order), name)
            unclear = ambiguity(listing.pictures) if order is None else ""
        formats = frozenset(PurePosixPath(n).suffix.lower() for n in self._files.values())
        super().__init__(
            name,
            list(self._files),
            formats,
            ignored=listing.companions,
            unread=unread,
            prompts=prompts,
            ambiguity=f"{name}: {unclear}" if unclear else "",
        )

    @abstractmethod
    def _exists(self, name: str) -> bool:
        """Whether a file of that name is there, listed or not."""


def _by_key(names: Sequence[str], source: str) -> dict[str, str]:
    """Key -> name in the order given; the key is the path without its suffix."""
    found: dict[str, str] = {}
    for name in names:
        key = str(PurePosixPath(name).with_suffix(""))
        if key in found:
            first, second = sorted((found[key], name))
            raise ConfigError(f"{source} holds {first} and {second}: two images of the key {key!r}")
        found[key] = name
    return found


class FolderSource(_FileSource):
    """Image files below a folder; links are followed, hidden files left out.

    Args:
        folder: searched recursively.
        manifest: lists the files and their order.
        order: of the file names, without a manifest; natural by default.
    """

    def __init__(self, folder: Path, manifest: Path | None = None, order: Order | None = None) -> None:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}")
        self._folder = folder
        super().__init__(str(folder), list_folder(folder), manifest, order)

    def _exists(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def load(self, index: int) -> Tensor:
        """See :meth:`ImageSource.load`."""
        name = self._files[self.keys[index]]
        return read_image(self._folder / name, name)


class ZipSource(_FileSource):
    """Image files in a zip archive; hidden ones and macOS's ``__MACOSX`` left out. Arguments as
    :class:`FolderSource`.
    """

    def __init__(self, path: Path, manifest: Path | None = None, order: Order | None = None) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
        except Exception as error:  # a damaged directory makes zipfile raise almost anything
            raise ConfigError(f"{path} can't be read as a zip archive: {error}") from error
        self._path, self._members = path, frozenset(names)
        super().__init__(str(path), list_names(names), manifest, order)

    def _exists(self, name: str) -> bool:
        return name in self._members

    def load(self, index: int) -> Tensor:
        """See :meth:`ImageSource.load`. The archive is opened anew, so that worker processes share no
        handle.
        """
        name = self._files[self.keys[index]]
        return read_image(io.BytesIO(self._read(name)), f"{name} of {self._path}")

    def _read(self, name: str) -> bytes:
        where = f"{name} of {self._path}"
        try:
            with zipfile.ZipFile(self._path) as archive:
                member = archive.getinfo(name)
                if member.flag_bits & 1:
                    raise ConfigError(f"{where} is encrypted; unpack the archive with its password first")
                if member.file_size > _MAX_BYTES:
                    raise ConfigError(f"{where} is {member.file_size:,} bytes large, too large for a picture")
                return archive.read(member)
        except (ConfigError, MemoryError):
            raise
        except NotImplementedError as error:
            raise ConfigError(f"{where} can't be unpacked here ({error}); pack it with deflate") from error
        except Exception as error:  # zlib.error, LZMAError, EOFError, BadZipFile, struct.error, ...
            raise ConfigError(f"{where} is damaged ({error or type(error).__name__})") from error


def open_source(
    path: str | Path, *, manifest: str | Path | None = None, order: Order | None = None
) -> ImageSource:
    """Images of a folder, a zip archive, an npz file (``arr_0``) or an npy file.

    A folder with a ``manifest.jsonl`` is read in its order and must hold all its images; other files are sorted by
    path, numbers in it by their value.

    Args:
        path: folder, ``.zip``, ``.npz`` or ``.npy``.
        manifest: another manifest; see :meth:`~hasten.eval.pictures.pairing.Manifest.read` for its forms.
        order: of the file names. Left open, prompts are refused by their place where it matters.

    Raises:
        ConfigError: if nothing is there, nothing in it is an image, or images are missing.
    """
    from hasten.eval.pictures.arrays import ArraySource

    where = Path(path)
    given = Path(manifest) if manifest is not None else None
    if where.suffix.lower() in (".npz", ".npy") and not where.is_dir():
        if given is not None:
            raise ConfigError(f"{given} names files, and {where} is an array of pictures in its own order")
        return ArraySource.open(where)
    if where.suffix.lower() == ".zip" and not where.is_dir():
        return ZipSource(where, given, order)
    default = where / "manifest.jsonl"
    if given is None and order is None and default.is_file():
        given = default
    return FolderSource(where, given, order)


def check_paired(first: ImageSource, second: ImageSource) -> None:
    """Refuse sources whose images don't pair up by key or that were stored differently.

    Raises:
        ConfigError: names missing keys, or the formats where only one side is lossy.
    """
    if set(first.keys) != set(second.keys):
        only = [sorted(set(a.keys) - set(b.keys)) for a, b in ((first, second), (second, first))]
        raise ConfigError(
            f"pairs are needed, but {first.name} has {len(first)} images and {second.name} {len(second)}; "
            f"only in the first: {only[0][:3]}, only in the second: {only[1][:3]}"
        )
    if first.lossy != second.lossy:
        raise ConfigError(
            f"{first.name} holds {sorted(first.formats)} and {second.name} {sorted(second.formats)}: lossy "
            f"compression "
            "of one side alone would be measured as a difference"
        )
