"""Picture files from anywhere: which files of a folder or an archive are read, which are not and why, and their
pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from hasten._errors import ConfigError

__all__ = [
    "Listing",
    "describe_unread",
    "is_hidden",
    "list_folder",
    "list_names",
    "picture_suffixes",
    "read_rgb",
    "to_rgb",
]

#: Formats that Pillow lists and yet decodes no still picture of: it has no decoder, or calls another program.
_NO_PICTURES = frozenset({"EPS", "MPEG"})

#: Formats that Pillow may have been built without -> what it calls the codec.
_CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}

#: Formats whose first frame is the picture; what follows are previews, layers or other sizes.
_FIRST_FRAME = frozenset({"CUR", "ICNS", "ICO", "MPO", "PSD"})

#: What lies beside pictures without being meant as one. Anything else that is not read is told.
_COMPANIONS = frozenset(
    {".cfg", ".csv", ".html", ".ini", ".json", ".jsonl", ".lock", ".log", ".md", ".ndjson", ".npy", ".npz"}
    | {".part", ".pt", ".pth", ".py", ".safetensors", ".sh", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml"}
)

#: Modes whose conversion to RGB loses nothing and needs no choice.
_PLAIN_MODES = frozenset({"1", "CMYK", "L", "RGBX", "YCbCr"})

_NAMED = 3


@cache
def picture_suffixes() -> frozenset[str]:
    """Endings of every still format that Pillow decodes here, in lower case with their dot."""
    Image.init()
    found = set()
    for suffix, kind in Image.registered_extensions().items():
        factory = Image.OPEN[kind][0] if kind in Image.OPEN else None
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        absent = kind in _CODECS and not features.check(_CODECS[kind])
        if factory is not None and not stub and not absent and kind not in _NO_PICTURES:
            found.add(suffix.lower())
    return frozenset(found)


def is_hidden(name: str) -> bool:
    """Whether some part of a path is hidden (``.name``, macOS's ``._name``) or macOS's ``__MACOSX``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


@dataclass(frozen=True)
class Listing:
    """Files of a folder or an archive, hidden ones left out.

    Args:
        pictures: paths relative to it, with ``/``, sorted.
        companions: text, arrays and the like beside them.
        unread: path -> why it is not read (a broken link, a format that is not known, ...).
    """

    pictures: tuple[str, ...]
    companions: tuple[str, ...]
    unread: Mapping[str, str]


def list_names(names: Iterable[str], unread: Mapping[str, str] | None = None) -> Listing:
    """Sort file names into pictures, companions and what is not read."""
    pictures, companions, left = [], [], dict(unread or {})
    for name in sorted(names):
        suffix = PurePosixPath(name).suffix.lower()
        if is_hidden(name):
            continue
        if suffix in picture_suffixes():
            pictures.append(name)
        elif suffix in _COMPANIONS:
            companions.append(name)
        else:
            left[name] = f"{suffix} files, an unsupported format" if suffix else "files without an ending"
    return Listing(tuple(pictures), tuple(companions), left)


def list_folder(folder: Path, *, deep: bool = True) -> Listing:
    """The files of a folder. Links are followed; a folder that is reached twice is read once, so that loops end.

    Args:
        folder: exists.
        deep: also those of the folders in it.
    """
    walk = _Walk(folder, deep)
    walk.run()
    return list_names(walk.files, walk.unread)


class _Walk:
    def __init__(self, root: Path, deep: bool) -> None:
        self.files: list[str] = []
        self.unread: dict[str, str] = {}
        self._root, self._deep = root, deep
        self._seen: set[tuple[int, int]] = set()
        self._linked: list[str] = []

    def run(self) -> None:
        """Real folders first, so that a picture goes by its real path where a link leads to it as well."""
        self._read("")
        while self._linked:
            self._read(self._linked.pop(0))

    def _read(self, start: str) -> None:
        waiting = [start]
        while waiting:
            place = waiting.pop()
            path = self._root / place
            try:
                status, entries = path.stat(), sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError as error:
                self.unread[place] = f"folders that cannot be opened ({error.strerror})"
                continue
            if (status.st_dev, status.st_ino) in self._seen:
                self.unread[place] = "links to folders that are already read"
                continue
            self._seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                self._sort(entry, f"{place}/{entry.name}" if place else entry.name, waiting)

    def _sort(self, entry: os.DirEntry[str], name: str, waiting: list[str]) -> None:
        if is_hidden(entry.name):
            return
        # os.path answers False where a link leads in circles; the entry itself would raise.
        if os.path.isdir(entry.path):
            if self._deep:
                (self._linked if entry.is_symlink() else waiting).append(name)
        elif os.path.isfile(entry.path):
            self.files.append(name)
        else:
            self.unread[name] = "broken links" if entry.is_symlink() else "pipes, sockets and devices"


def describe_unread(unread: Mapping[str, str]) -> str:
    """What is not read, by reason: ``"broken links: 1 (gone.png); files without an ending: 2 (a, b)"``."""
    reasons: dict[str, list[str]] = {}
    for name, reason in unread.items():
        reasons.setdefault(reason, []).append(name)
    return "; ".join(
        f"{reason}: {len(names)} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for reason, names in sorted(reasons.items())
    )


def read_rgb(data: Path | io.BytesIO, name: str) -> Image.Image:
    """One still picture of any format that Pillow reads, as RGB of 8 bits, upright.

    Raises:
        ConfigError: with the reason, if it can't be read, is no still, or can't be converted without guessing.
    """
    try:
        with Image.open(data) as image:
            if getattr(image, "is_animated", False) and image.format not in _FIRST_FRAME:
                raise ConfigError(
                    f"{name} holds {getattr(image, 'n_frames', 'several')} frames; save the frame to use as "
                    "a separate picture."
                )
            image.load()
            return to_rgb(image, name=name)
    except (ConfigError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ConfigError(f"{name} is not a readable image (unknown format).") from error
    except Exception as error:  # a damaged file makes a decoder raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"{name} is not a readable image ({reason}).") from error


def to_rgb(image: Image.Image, *, name: str = "image") -> Image.Image:
    """Convert a PIL image to mode RGB without guessing, and turn it as its EXIF orientation says.

    Grey is replicated, CMYK and palettes are converted. Of 16 bits the upper eight count, in grey as in colour (of
    which Pillow gives no more). Transparency is accepted only where every pixel is opaque: what lies behind a
    transparent pixel is a choice that would change the score.

    Raises:
        ConfigError: if the image has visible transparency, another depth or an unknown mode.
    """
    return _upright(_converted(image, name))


def _converted(image: Image.Image, name: str) -> Image.Image:
    keyed = image.mode in ("1", "L", "RGB") and "transparency" in image.info
    if image.mode in ("LA", "RGBA", "RGBa", "P", "PA") or keyed:
        rgba = image.convert("RGBA")
        if int(np.asarray(rgba)[..., 3].min()) < 255:
            raise ConfigError(f"{name} has transparent pixels; composite it on a background first.")
        return rgba.convert("RGB")
    if image.mode == "RGB":
        return image
    if image.mode in _PLAIN_MODES:
        return image.convert("RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _upper_bits(image, name)
    raise ConfigError(f"{name} has the mode {image.mode!r}; convert it to RGB first.")


def _upper_bits(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey as RGB of 8 bits, by the rule by which Pillow reads 16-bit colour of the same format."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # of a TIFF: BitsPerSample
    wide = image.mode == "I" and image.format not in ("PNG", "PPM")
    values = np.asarray(image).astype(np.int64)
    if bits != 16 or wide or not 0 <= values.min() <= values.max() < 2**16:
        depth = bits if bits != 16 else 32
        raise ConfigError(f"{name} has {depth} bits per channel; save it with 8 or 16 first.")
    # A PPM's colours are rounded to 255 steps, those of every other format lose their lower byte.
    eight = np.rint(values / 257) if image.format == "PPM" else values >> 8
    grey = Image.fromarray(eight.astype(np.uint8))
    grey.info = dict(image.info)
    return grey.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (
        Exception
    ):  # damaged EXIF says nothing about the orientation, and viewers show such a picture as it is
        return image
