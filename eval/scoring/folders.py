"""Scores pictures that are already there, from any tool: folders, zip archives and npz files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.eval.distributed import gather, own_part
from hasten.eval.metric import Batch, Features, Metric, SampleMetric, SetMetric, concatenate
from hasten.eval.pictures.loading import Loaded, batches
from hasten.eval.pictures.sources import ImageSource, check_paired
from hasten.eval.scoring.reference import Reference, embed_references, few_samples
from hasten.eval.statistics import Estimate, mean_estimate, ratio_of_sums
from hasten.extend import ConfigError

__all__ = ["FolderScores", "Pictures", "score_pictures"]


@dataclass(frozen=True)
class Pictures:
    """What to score, and how to read it.

    Args:
        generated: the pictures.
        baseline: pictures of the same keys to compare with, for metrics that need pairs.
        prompts: one per picture, in the order of the keys; those of the pictures' manifest unless given.
        batch_size: pictures at once.
        workers: decoding processes.
        skip_bad: leave out pictures that can't be used, with their partners.

    Raises:
        ConfigError: if pictures and prompts, or the two sources, don't correspond, or the names of the pictures
            leave open which prompt belongs to which.
    """

    generated: ImageSource
    baseline: ImageSource | None = None
    prompts: Sequence[str] | None = None
    batch_size: int = 32
    workers: int = 0
    skip_bad: bool = False
    bad: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.baseline is not None:
            check_paired(self.baseline, self.generated)
        if self.prompts is None:
            return
        if len(self.prompts) != len(self.generated):
            raise ConfigError(
                f"{self.generated.name} holds {len(self.generated)} pictures, but there are {len(self.prompts)} "
                "prompts; give one for each, in the order of the file names"
                + (f". {self.generated.left_out}" if self.generated.left_out else "")
            )
        if self.generated.ambiguity:
            raise ConfigError(self.generated.ambiguity)

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The prompt of every picture, where there are prompts."""
        if self.prompts is not None:
            return tuple(self.prompts)
        known = self.generated.prompts
        return None if known is None else tuple(known[key] for key in self.generated.keys)

    def remarks(self) -> list[str]:
        """What the user should know before trusting a figure: files that are not read, prompts that differ."""
        sources = [self.generated, *([self.baseline] if self.baseline is not None else [])]
        found = [source.left_out for source in sources if source.left_out]
        known = self.generated.prompts
        if known is not None and self.prompts is not None:
            pairs = zip(self.generated.keys, self.prompts)
            others = [key for key, prompt in pairs if known[key] != prompt]
            if others:
                found.append(
                    f"{len(others)} of {len(self.generated)} prompts are not those of the manifest of "
                    f"{self.generated.name}, the first is that of {others[0]}"
                )
        return found

    def _stream(self, source: ImageSource) -> Iterator[tuple[int, Tensor]]:
        """Place in ``generated`` and picture, in that order, whatever order ``source`` has."""
        place = {key: i for i, key in enumerate(self.generated.keys)}
        own = own_part(len(place), self.batch_size)
        mine = (i for i in range(len(source)) if place[source.keys[i]] in own)
        order = sorted(mine, key=lambda i: place[source.keys[i]])
        loaded = Loaded()
        for image in batches(
            source, loaded, batch_size=1, workers=self.workers, indices=order, skip_bad=self.skip_bad
        ):
            yield place[loaded.keys[-1]], image
        self.bad.update({f"{source.name}: {key}": reason for key, reason in loaded.bad.items()})

    def _pairs(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        if self.baseline is None:
            for place, image in self._stream(self.generated):
                yield place, image, None
            return
        others = self._stream(self.baseline)
        waiting = next(others, None)
        for place, image in self._stream(self.generated):
            while waiting is not None and waiting[0] < place:
                waiting = next(others, None)
            if waiting is not None and waiting[0] == place:
                yield place, image, waiting[1]
        for _ in others:  # read to its end, so that every bad picture is known
            pass

    def batches(self) -> Iterator[tuple[list[int], Batch]]:
        """Batches of one picture size, with the places of their pictures."""
        group: list[tuple[int, Tensor, Tensor | None]] = []
        for item in self._pairs():
            if group and (len(group) == self.batch_size or group[0][1].shape != item[1].shape):
                yield self._batch(group)
                group = []
            group.append(item)
        if group:
            yield self._batch(group)

    def _batch(self, group: Sequence[tuple[int, Tensor, Tensor | None]]) -> tuple[list[int], Batch]:
        places = [place for place, _, _ in group]
        images = torch.cat([image for _, image, _ in group])
        others = [other for _, _, other in group if other is not None]
        texts = self.texts
        prompts = None if texts is None else tuple(texts[place] for place in places)
        return places, Batch(images, prompts, torch.cat(others) if others else None)


@dataclass(frozen=True)
class FolderScores:
    """Figures of a set of pictures.

    Args:
        count: pictures that were scored.
        bad: picture -> why it was left out.
        figures: metric -> estimate.
        extras: metric -> named companions of its figure (noise floor, unbiased form).
        warnings: what limits the figures, in words.
        unread: source -> file -> why it is not read at all.
    """

    count: int
    bad: Mapping[str, str]
    figures: Mapping[str, Estimate]
    extras: Mapping[str, Mapping[str, float]]
    warnings: Sequence[str]
    unread: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def score_pictures(
    pictures: Pictures,
    metrics: Sequence[Metric],
    reference: Reference | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> FolderScores:
    """Read every picture once and compute all metrics.

    Where processes are connected (:func:`hasten.eval.distributed.launched`), each reads its part of the pictures,
    and all return the figures of the whole.

    Raises:
        ConfigError: if a metric lacks what it needs, a picture can't be used, or a feature is not finite.
        CheckpointError: if statistics of the reference are damaged.
    """
    _check_needs(metrics, pictures, reference)
    if reference is not None:
        reference.check(metrics)
    places: list[int] = []
    parts: dict[str, list[Features]] = {metric.name: [] for metric in metrics}
    side = 0
    for where, batch in pictures.batches():
        places += where
        side = batch.images.shape[-2]
        for metric in metrics:
            parts[metric.name].append(metric.embed(batch))
    ranks = gather((places, side, parts, pictures.bad))
    places, side = [place for rank in ranks for place in rank[0]], max(rank[1] for rank in ranks)
    parts = {metric.name: [part for rank in ranks for part in rank[2][metric.name]] for metric in metrics}
    bad = {picture: reason for rank in ranks for picture, reason in rank[3].items()}
    if len(places) < 2:
        raise ConfigError(
            f"{pictures.generated.name} holds {len(places)} usable pictures; at least two are needed"
        )
    texts = pictures.texts
    prompts = None if texts is None else [texts[place] for place in places]
    references = embed_references(metrics, reference, prompts or (), side)
    figures: dict[str, Estimate] = {}
    extras: dict[str, dict[str, float]] = {}
    warnings = [*pictures.remarks(), *references.warnings]
    for metric in metrics:
        features = concatenate(parts[metric.name])
        if isinstance(metric, SetMetric):
            figure = metric.aggregate(features, references.of[metric.name], level=level, seed=seed)
            figures[metric.name], extras[metric.name] = figure.estimate, dict(figure.extras)
            warnings += few_samples(metric, features)
        elif isinstance(metric, SampleMetric):
            figures[metric.name] = _mean(metric, features, prompts, level, seed)
    unread = _unread(pictures)
    if reference is not None and references.unread:
        unread[str(reference.path)] = references.unread
    return FolderScores(
        len(places), {**bad, **references.bad}, figures, extras, list(dict.fromkeys(warnings)), unread
    )


def _unread(pictures: Pictures) -> dict[str, Mapping[str, str]]:
    sources = (pictures.generated, pictures.baseline)
    return {source.name: source.unread for source in sources if source is not None and source.unread}


def _check_needs(metrics: Sequence[Metric], pictures: Pictures, reference: Reference | None) -> None:
    given = {"baseline": pictures.baseline, "prompt": pictures.texts, "reference": reference}
    options = {"baseline": "--baseline", "prompt": "--prompts", "reference": "--reference"}
    lacks = []
    for metric in metrics:
        lacking = [options[need] for need in sorted(metric.needs) if need in given and given[need] is None]
        if lacking:
            lacks.append(f"{metric.name} needs {' and '.join(lacking)}")
    if lacks:
        raise ConfigError("; ".join(lacks))


def _mean(
    metric: SampleMetric, features: Features, prompts: Sequence[str] | None, level: float, seed: int
) -> Estimate:
    counts = metric.counts(features)
    if counts is not None:
        return ratio_of_sums(*counts, clusters=prompts, level=level)
    scores = metric.averaged(metric.score(features)).to(torch.float64)
    return mean_estimate(scores.numpy(), clusters=prompts, level=level, seed=seed)
