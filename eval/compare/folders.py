"""Scores pictures that are already there, from any tool: folders, zip archives and npz files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.compare.scores import few_samples, load_reference
from hasten.eval.distributed import gather, own_part
from hasten.eval.metric import Batch, Features, Metric, SampleMetric, SetMetric, concatenate
from hasten.eval.sources import ImageSource, Loaded, batches, check_paired
from hasten.eval.statistics import Estimate, mean_estimate, ratio_of_sums

__all__ = ["FolderScores", "Pictures", "score_pictures"]


@dataclass(frozen=True)
class Pictures:
    """What to score, and how to read it.

    Args:
        generated: the pictures.
        baseline: pictures of the same keys to compare with, for metrics that need pairs.
        prompts: one per picture, in the order of the keys.
        batch_size: pictures at once.
        workers: decoding processes.
        skip_bad: leave out pictures that can't be used, with their partners.

    Raises:
        ConfigError: if pictures and prompts, or the two sources, don't correspond.
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
        if self.prompts is not None and len(self.prompts) != len(self.generated):
            raise ConfigError(
                f"{self.generated.name} holds {len(self.generated)} pictures, but there are {len(self.prompts)} "
                "prompts; give one for each, in the order of the file names"
            )

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
        prompts = None if self.prompts is None else tuple(self.prompts[place] for place in places)
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
    """

    count: int
    bad: Mapping[str, str]
    figures: Mapping[str, Estimate]
    extras: Mapping[str, Mapping[str, float]]
    warnings: Sequence[str]


def score_pictures(
    pictures: Pictures,
    metrics: Sequence[Metric],
    reference: Path | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> FolderScores:
    """Read every picture once and compute all metrics.

    Where processes are connected (:func:`hasten.eval.distributed.launched`), each reads its part of the pictures,
    and all return the figures of the whole.

    Raises:
        ConfigError: if a metric lacks what it needs, a picture can't be used, or a feature is not finite.
    """
    _check_needs(metrics, pictures, reference)
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
    prompts = None if pictures.prompts is None else [pictures.prompts[place] for place in places]
    figures: dict[str, Estimate] = {}
    extras: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    for metric in metrics:
        features = concatenate(parts[metric.name])
        if isinstance(metric, SetMetric):
            real = load_reference(metric, reference, prompts or (), side)
            figure = metric.aggregate(features, real, level=level, seed=seed)
            figures[metric.name], extras[metric.name] = figure.estimate, dict(figure.extras)
            warnings += few_samples(metric, features)
        elif isinstance(metric, SampleMetric):
            figures[metric.name] = _mean(metric, features, prompts, level, seed)
    return FolderScores(len(places), bad, figures, extras, warnings)


def _check_needs(metrics: Sequence[Metric], pictures: Pictures, reference: Path | None) -> None:
    given = {"baseline": pictures.baseline, "prompt": pictures.prompts, "reference": reference}
    options = {"baseline": "--baseline", "prompt": "--prompts", "reference": "--reference"}
    for metric in metrics:
        lacking = [options[need] for need in sorted(metric.needs) if need in given and given[need] is None]
        if lacking:
            raise ConfigError(f"{metric.name} needs {' and '.join(lacking)}")


def _mean(
    metric: SampleMetric, features: Features, prompts: Sequence[str] | None, level: float, seed: int
) -> Estimate:
    counts = metric.counts(features)
    if counts is not None:
        return ratio_of_sums(*counts, clusters=prompts, level=level)
    scores = metric.averaged(metric.score(features)).to(torch.float64)
    return mean_estimate(scores.numpy(), clusters=prompts, level=level, seed=seed)
