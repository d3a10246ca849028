"""Features of image sources, written to disk as they are made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.moments import Moments
from hasten.eval.networks.features import FeatureNetwork
from hasten.eval.pictures.loading import Loaded, batches
from hasten.eval.pictures.sources import ImageSource
from hasten.extend import CheckpointError, ConfigError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under ``path`` complete or not at all (also when the disk runs full)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with name.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    Attributes:
        keys: one per row.
        features: float32 ``[N, d]``, mapped from disk where a file was asked for.
        bad: key -> reason, of images left out.
        fingerprint: what made the features (metric ``"features"``).
    """

    keys: tuple[str, ...]
    features: Tensor
    bad: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Fingerprint = field(default_factory=lambda: Fingerprint("features"))

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, keys: Sequence[str]) -> Tensor:
        """Rows of ``keys``, in that order: how two sets are restricted to the images both have.

        Raises:
            ConfigError: names a key that is missing.
        """
        rows = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in rows]
        if missing:
            raise ConfigError(f"There are no features of {len(missing)} images, the first is {missing[0]!r}.")
        return self.features[torch.tensor([rows[key] for key in keys], dtype=torch.long)]


def _feature_fingerprint(network: FeatureNetwork, source: ImageSource, batch_size: int) -> Fingerprint:
    return network.fingerprint("features", batch_size=batch_size, lossy_images=source.lossy)


def extract_features(
    source: ImageSource,
    network: FeatureNetwork,
    *,
    path: str | Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    skip_bad: bool = False,
) -> FeatureSet:
    """Run a feature network over a source.

    Args:
        source: the images.
        network: makes the features.
        path: an ``.npy`` file for the features; memory then stays bounded whatever the number of images.
            Beside it a ``.json`` keeps keys and fingerprint.
        batch_size: images at once; part of the fingerprint, since networks depend on it slightly.
        workers: decoding processes.
        indices: a shard of the source.
        skip_bad: leave unreadable images out.

    Raises:
        ConfigError: on bad images (named and counted) without ``skip_bad``.
    """
    count = len(source) if indices is None else len(indices)
    shape = (count, network.dimension)
    target = np.empty(shape, dtype=np.float32)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    loaded, row = Loaded(), 0
    for images in batches(
        source, loaded, batch_size=batch_size, workers=workers, indices=indices, skip_bad=skip_bad
    ):
        target[row : row + len(images)] = network(images).numpy()
        row += len(images)
    fingerprint = _feature_fingerprint(network, source, batch_size)
    if path is not None:
        assert isinstance(target, np.memmap)
        target.flush()
        record = {"keys": loaded.keys, "bad": loaded.bad, "fingerprint": fingerprint.as_dict()}
        with atomic_write(Path(path).with_suffix(".json")) as file:
            file.write(json.dumps(record).encode())
    return FeatureSet(tuple(loaded.keys), torch.from_numpy(target[:row]), loaded.bad, fingerprint)


def load_features(path: str | Path) -> FeatureSet:
    """Features written by :func:`extract_features`, mapped copy-on-write rather than read.

    Raises:
        ConfigError: if there are none.
        CheckpointError: if the two files don't belong together.
    """
    where = Path(path)
    beside = where.with_suffix(".json")
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        rows = np.load(where, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"There are no features at {where}: {error}") from error
    try:
        keys, bad = tuple(map(str, record["keys"])), dict(record["bad"])
        fingerprint = Fingerprint.from_dict(record["fingerprint"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{beside} is no record of features: {error}") from error
    if rows.ndim != 2 or len(rows) < len(keys):
        raise CheckpointError(f"{where} holds fewer features than {beside.name} has keys.")
    return FeatureSet(keys, torch.from_numpy(rows[: len(keys)]), bad, fingerprint)


def stream_moments(
    source: ImageSource,
    network: FeatureNetwork,
    *,
    batch_size: int = 32,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    skip_bad: bool = False,
) -> tuple[Moments, Loaded]:
    """Moments of a source's features without keeping the features; arguments as in :func:`extract_features`.

    KID and intervals need the features themselves.
    """
    moments, loaded = Moments.empty(network.dimension), Loaded()
    waiting: list[Tensor] = []
    for images in batches(
        source, loaded, batch_size=batch_size, workers=workers, indices=indices, skip_bad=skip_bad
    ):
        waiting.append(network(images))
        if (
            sum(map(len, waiting)) >= network.dimension
        ):  # a d x d update pays off once there are d rows for it
            moments, waiting = moments.merge(Moments.of(torch.cat(waiting))), []
    if waiting:
        moments = moments.merge(Moments.of(torch.cat(waiting)))
    return moments, loaded
