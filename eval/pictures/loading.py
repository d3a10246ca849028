"""Decodes the images of a source ahead of their use, in worker processes, with every bad one named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hasten.eval.pictures.sources import ImageSource
from hasten.extend import ConfigError


@dataclass
class Loaded:
    """What became of a source's images.

    Attributes:
        keys: images delivered so far, in order.
        bad: key -> reason, of images that could not be used.
        by_source: name of the source -> the same, where several are read.
    """

    keys: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    by_source: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, sources: Sequence[ImageSource], key: str, images: Sequence[Tensor | str]) -> None:
        """Remember why the images of a key can't be used."""
        for source, image in zip(sources, images):
            if isinstance(image, str):
                self.bad.setdefault(key, image)
                self.by_source.setdefault(source.name, {})[key] = image

    def of(self, source: ImageSource) -> Mapping[str, str]:
        """Bad images of one source."""
        return self.by_source.get(source.name, {})

    @property
    def named(self) -> dict[str, str]:
        """Reasons by source and key, for messages."""
        return {f"{name}: {key}": why for name, bad in self.by_source.items() for key, why in bad.items()}


class _Images(Dataset[tuple[int, list[Tensor | str]]]):
    """Decodes in the worker process, an image of each source; a reason instead of an image where that fails."""

    def __init__(self, sources: Sequence[ImageSource], indices: Sequence[int]) -> None:
        self._sources, self._indices = sources, indices
        # The others hold the images of the first one under the same keys, in an order of their own.
        self._places = [{key: place for place, key in enumerate(other.keys)} for other in sources[1:]]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[int, list[Tensor | str]]:
        index = self._indices[position]
        key = self._sources[0].keys[index]
        places = [index, *(place[key] for place in self._places)]
        return index, [_load(source, place) for source, place in zip(self._sources, places)]


def _load(source: ImageSource, index: int) -> Tensor | str:
    try:
        return source.load(index)
    except ConfigError as error:
        return str(error)


def _same(items: list[Any]) -> Any:
    return items[0]


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Attributes:
        batch_size: most images in a batch.
        workers: decoding processes; 0 decodes here.
        skip_bad: leave bad images out and go on.
    """

    batch_size: int = 32
    workers: int = 0
    skip_bad: bool = False


def batches(
    source: ImageSource,
    loaded: Loaded,
    *,
    indices: Sequence[int] | None = None,
    **reading: Any,
) -> Iterator[Tensor]:
    """Batches of uint8 images ``[B, 3, H, W]`` of one source; see :func:`corresponding`.

    Args:
        source: where from.
        loaded: filled in as images are delivered; ``keys`` covers the batch in hand.
        indices: images to deliver (a shard), all by default.
        reading: fields of :class:`Reading`.

    Raises:
        ConfigError: names and counts the images that can't be used, or says that all are bad.
    """
    for _, (images,) in corresponding((source,), loaded, Reading(**reading), indices):
        yield images


def corresponding(
    sources: Sequence[ImageSource],
    loaded: Loaded,
    reading: Reading,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Batches of images of the same keys in several sources, decoded ahead in worker processes, in order.

    A batch ends early where the image size changes. Without ``skip_bad`` the first bad image stops the
    delivery, the rest is only read through to count the others, and the error names them.

    Args:
        sources: the first one says the order; the others hold its keys.
        loaded: filled in as images are delivered; ``keys`` covers the batch in hand.
        reading: how.
        indices: images to deliver (a shard), all by default.

    Yields:
        Their places in the first source, and uint8 ``[B, 3, H, W]`` of each source.

    Raises:
        ConfigError: names and counts the images that can't be used, or says that all are bad.
    """
    first = sources[0]
    chosen = range(len(first)) if indices is None else indices
    loader = DataLoader(_Images(sources, chosen), batch_size=1, num_workers=reading.workers, collate_fn=_same)
    places: list[int] = []
    waiting: list[list[Tensor]] = []

    def delivered() -> tuple[list[int], list[Tensor]]:
        loaded.keys += [first.keys[place] for place in places]
        return places, [torch.stack(images) for images in zip(*waiting)]

    for index, images in loader:
        if any(isinstance(image, str) for image in images):
            loaded.note(sources, first.keys[index], images)
            continue
        if loaded.bad and not reading.skip_bad:
            continue
        shapes = [image.shape for image in images]
        if waiting and (len(waiting) == reading.batch_size or [w.shape for w in waiting[0]] != shapes):
            yield delivered()
            places, waiting = [], []
        places.append(index)
        waiting.append(images)
    if loaded.bad and not reading.skip_bad:
        raise ConfigError(" ".join(_bad_message(source, loaded.of(source)) for source in sources).strip())
    if waiting:
        yield delivered()
    if not loaded.keys and len(chosen):
        raise ConfigError(
            f"none of the {len(chosen)} images of {first.name} can be used. {_first(loaded.bad)}"
        )


def _first(bad: Mapping[str, str], count: int = 3) -> str:
    return " ".join(list(bad.values())[:count])


def _bad_message(source: ImageSource, bad: Mapping[str, str]) -> str:
    if not bad:
        return ""
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return (
        f"{len(bad)} of {len(source)} images of {source.name} can't be used: {_first(bad)}{more} Repair "
        "them, or leave them out with --skip-bad (skip_bad=True in Python)."
    )
