"""What metrics of whole sets compare with: real pictures, statistics of them, or what a metric draws itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.eval.distributed import own_part
from hasten.eval.functional.moments import Moments
from hasten.eval.metric import Batch, Features, Metric, SetMetric
from hasten.eval.metrics.sets import Fid
from hasten.eval.pictures.arrays import PICTURES, npz_members
from hasten.eval.pictures.loading import Loaded, Reading, corresponding
from hasten.eval.pictures.sources import ImageSource, open_source
from hasten.eval.scoring.kept import keep_reference
from hasten.eval.scoring.moments_file import load_statistics
from hasten.extend import ConfigError, gather
from hasten.files import describe_unread

__all__ = ["Embedded", "Reference", "embed_references", "embed_source", "few_samples"]

_STATISTICS = {"mu", "sigma"}


@dataclass(frozen=True)
class Reference:
    """The user's reference set, and how to read it.

    Args:
        path: folder, zip, npy, or npz: of pictures, of statistics (``mu``, ``sigma``), or of both, as the evaluation
            batches of ADM are: then Frechet distances take the statistics, every other metric the pictures.
        count: pictures that statistics of another tool were made from; they record neither that nor the network, and
            giving it says that they are of the network that is used here.
        reading: batches, workers, and what becomes of pictures that can't be used.
    """

    path: Path
    count: int | None = None
    reading: Reading = field(default_factory=Reading)

    def check(self, metrics: Sequence[Metric]) -> None:
        """Find whatever is wrong with it before the work begins, apart from single bad pictures.

        Raises:
            ConfigError: nothing usable is there, or it does not suit a metric.
            CheckpointError: the statistics are damaged.
        """
        sets = [metric for metric in metrics if isinstance(metric, SetMetric)]
        _, pictured = self._moments(sets)
        if pictured or not sets:
            open_source(self.path)

    def _held(self) -> frozenset[str]:
        """Members of an npz file; none of anything else, which is pictures."""
        is_npz = self.path.suffix.lower() == ".npz" and not self.path.is_dir()
        return npz_members(self.path) if is_npz else frozenset()

    def _moments(
        self, metrics: Sequence[SetMetric]
    ) -> tuple[dict[str, tuple[Moments, str]], list[SetMetric]]:
        """Metric -> statistics and a warning about them, and the metrics that take the pictures instead."""
        held = self._held()
        statistics = held >= _STATISTICS
        found = {
            metric.name: self._statistics(metric, batch=PICTURES in held)
            for metric in metrics
            if statistics and isinstance(metric, Fid)
        }
        pictured = [metric for metric in metrics if metric.name not in found]
        if statistics and pictured and PICTURES not in held:
            raise ConfigError(
                f"{pictured[0].name} needs the pictures of the reference; {self.path} holds statistics"
            )
        if self.count is not None and not found:
            raise ConfigError(
                f"--reference-count applies to statistics (mu and sigma) for a Frechet distance, but {self.path} "
                + ("is not used as such" if statistics else "contains pictures, which are counted")
            )
        return found, pictured

    def _statistics(self, metric: Fid, *, batch: bool) -> tuple[Moments, str]:
        """The statistics; those of a batch are taken for what its format says, with as many pictures as it has."""
        count = self.count
        if count is None and batch:
            count = len(open_source(self.path))
        loaded = load_statistics(self.path, expected=metric.fingerprint(), n=count, trust=count is not None)
        network = metric.network
        if loaded.moments.dimension != network.dimension:
            raise ConfigError(
                f"{self.path} holds statistics of {loaded.moments.dimension} features, and {network.name} of "
                f"{metric.name} has {network.dimension}: they are from another network"
            )
        if loaded.fingerprint is not None:
            return loaded.moments, ""
        note = (
            f"{metric.name}: {self.path} does not record what made its statistics; the figure holds only if it was "
            f"{network.name} with the preprocessing {network.preprocessing!r}"
        )
        if self.count is None:
            note += f"; they count as made from its {count} pictures (for the noise floor; or give --reference-count)"
        return loaded.moments, note


@dataclass(frozen=True)
class Embedded:
    """What every metric compares with.

    Args:
        of: metric -> embeddings or moments.
        pictures: reference pictures that were read.
        bad: picture -> why it was left out.
        unread: file -> why it is not read at all.
        warnings: what the user should know of it, in words.
    """

    of: Mapping[str, Any]
    pictures: int = 0
    bad: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what was read of the reference and what was not."""
        return {"pictures": self.pictures, "bad": dict(self.bad), "unread": dict(self.unread)}


def embed_references(
    metrics: Sequence[Metric], reference: Reference | None, prompts: Sequence[str], side: int
) -> Embedded:
    """Read the reference once and embed it for every metric of sets.

    Processes that are connected share the reading of the user's reference; the first one has all of it.

    Args:
        metrics: those of single pictures are passed over.
        reference: the user's; without one, metrics compare with their own, if they have one.
        prompts: of the run.
        side: of its pictures, in pixels.

    Raises:
        ConfigError: if there is no reference, it does not suit a metric, or a picture can't be used.
        CheckpointError: if statistics are damaged.
    """
    sets = [metric for metric in metrics if isinstance(metric, SetMetric)]
    if reference is None:
        return Embedded({metric.name: _own(metric, prompts, side) for metric in sets})
    moments, pictured = reference._moments(sets)
    of: dict[str, Any] = {name: found for name, (found, _) in moments.items()}
    warnings = [note for _, note in moments.values() if note]
    if not pictured:
        return Embedded(of, warnings=warnings)
    source = open_source(reference.path)
    features, bad = embed_source(source, pictured, reference.reading)
    left = [source.left_out] if source.left_out else []
    if bad:
        names = dict.fromkeys(bad, "pictures that can't be used")
        left.append(f"{source.name}: left out: {describe_unread(names)}")
    named = {f"{source.name}: {key}": reason for key, reason in bad.items()}
    return Embedded(of | features, len(source) - len(bad), named, source.unread, [*warnings, *left])


def _own(metric: SetMetric, prompts: Sequence[str], side: int) -> Features | Moments:
    drawn = metric.own_reference(prompts, side)
    if drawn is None:
        raise ConfigError(f"{metric.name} compares with a set of real pictures: give --reference")
    kept = keep_reference(metric)
    for images in drawn:
        kept.add(Batch(images))
    return kept.kept


def embed_source(
    source: ImageSource, metrics: Sequence[SetMetric], reading: Reading
) -> tuple[dict[str, Features | Moments], dict[str, str]]:
    """Metric -> embeddings or moments of the pictures of a source, and picture -> why it is left out.

    Connected processes share the work; the first one has all of it.

    Raises:
        ConfigError: if a picture can't be used and is not to be left out.
    """
    loaded, kept = Loaded(), [keep_reference(metric) for metric in metrics]
    own = own_part(len(source), reading.batch_size)
    for _, (images,) in corresponding((source,), loaded, reading, own):
        for one in kept:
            one.add(Batch(images))
    for one in kept:
        one.collect()
    bad = {key: reason for rank in gather(loaded.bad) for key, reason in rank.items()}
    return {one.metric.name: one.kept for one in kept}, bad


def few_samples(metric: SetMetric, features: Features) -> list[str]:
    """A warning where there are no more pictures than feature dimensions."""
    rows = features.get("features")
    if rows is None or len(rows) > rows.shape[1]:
        return []
    return [
        f"{metric.name}: {len(rows)} pictures for {rows.shape[1]} feature dimensions; the value is exact, "
        "but the set is small: compare only values with the same number of pictures"
    ]
