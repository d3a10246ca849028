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
        "them, or leave them out with --skip-bad (skip_bad=True in Python)."
    )
