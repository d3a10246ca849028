"""Scores pictures that are already there, from any tool: folders, zip archives and npz files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hasten.eval.distributed import own_part, own_rank
from hasten.eval.metric import Batch, Metric
from hasten.eval.pictures.loading import Loaded, Reading, corresponding
from hasten.eval.pictures.sources import ImageSource, check_paired
from hasten.eval.scoring.kept import KeptFeatures, KeptScores, Rows, keep
from hasten.eval.scoring.reference import Embedded, Reference, embed_references, few_samples
from hasten.eval.statistics import Estimate, mean_estimate, ratio_of_sums
from hasten.extend import ConfigError, gather

__all__ = ["FolderScores", "Pictures", "score_pictures"]


@dataclass(frozen=True)
class Pictures:
    """What to score, and how to read it.

    Args:
        generated: the pictures.
        baseline: pictures of the same keys to compare with, for metrics that need pairs.
        prompts: one per picture, in the order of the keys; those of the pictures' manifest unless given.
        reading: batches, workers, and what becomes of pictures that can't be used, with their partners.

    Raises:
        ConfigError: if pictures and prompts, or the two sources, don't correspond, or the names of the pictures
            leave open which prompt belongs to which.
    """

    generated: ImageSource
    baseline: ImageSource | None = None
    prompts: Sequence[str] | None = None
    reading: Reading = field(default_factory=Reading)
    loaded: Loaded = field(default_factory=Loaded)

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
                    f"{len(others)} of {len(self.generated)} prompts differ from the manifest of "
                    f"{self.generated.name}, first that of {others[0]}"
                )
        return found

    def batches(self) -> Iterator[tuple[list[int], Batch]]:
        """This process's batches of one picture size, with the places of their pictures."""
        sources = [self.generated] if self.baseline is None else [self.generated, self.baseline]
        own, texts = own_part(len(self.generated), self.reading.batch_size), self.texts
        for places, images in corresponding(sources, self.loaded, self.reading, own):
            prompts = None if texts is None else tuple(texts[place] for place in places)
            yield places, Batch(images[0], prompts, images[1] if len(images) > 1 else None)


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
) -> FolderScores | None:
    """Read every picture once and compute all metrics, in memory that does not grow with their number.

    Where processes are connected (:func:`hasten.eval.distributed.launched`), each reads its part of the pictures, and
    the first one returns the figures of the whole, the others ``None``.

    Raises:
        ConfigError: if a metric lacks what it needs, a picture can't be used, or a feature is not finite.
        CheckpointError: if statistics of the reference are damaged.
    """
    _check_needs(metrics, pictures, reference)
    if reference is not None:
        reference.check(metrics)
    kept, order, side = _read(pictures, metrics)
    bad = {picture: reason for named in gather(pictures.loaded.named) for picture, reason in named.items()}
    # The user's reference is read by all processes; what a metric draws itself, by the first one.
    references = None if reference is None else embed_references(metrics, reference, (), 0)
    if own_rank() > 0:
        return None
    count = len(order)
    if count < 2:
        raise ConfigError(f"{pictures.generated.name} holds {count} usable pictures; at least two are needed")
    texts = pictures.texts
    prompts = None if texts is None else [texts[place] for place in order.tensor().flatten().tolist()]
    if references is None:
        references = embed_references(metrics, None, prompts or (), side)
    found = _Figures(prompts, level, seed)
    for one in kept:
        found.add(one, references)
    unread = _unread(pictures)
    if reference is not None and references.unread:
        unread[str(reference.path)] = references.unread
    warnings = [*pictures.remarks(), *references.warnings, *found.warnings]
    return FolderScores(
        count,
        {**bad, **references.bad},
        found.estimates,
        found.extras,
        list(dict.fromkeys(warnings)),
        unread,
    )


def _read(pictures: Pictures, metrics: Sequence[Metric]) -> tuple[list[KeptScores | KeptFeatures], Rows, int]:
    """What the metrics keep of the pictures of all processes, the places of the pictures, and their height."""
    kept, order, side = [keep(metric) for metric in metrics], Rows(), 0
    for where, batch in pictures.batches():
        order.append(torch.tensor(where))
        side = batch.images.shape[-2]
        for one in kept:
            one.add(batch)
    for part in (order, *kept):
        part.collect()
    return kept, order, max(gather(side))


@dataclass
class _Figures:
    """Figures from what was kept of all pictures."""

    prompts: Sequence[str] | None
    level: float
    seed: int
    estimates: dict[str, Estimate] = field(default_factory=dict)
    extras: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, kept: KeptScores | KeptFeatures, references: Embedded) -> None:
        name = kept.metric.name
        if isinstance(kept, KeptFeatures):
            figure = kept.metric.aggregate(kept.kept, references.of[name], level=self.level, seed=self.seed)
            self.estimates[name], self.extras[name] = figure.estimate, dict(figure.extras)
            self.warnings += few_samples(kept.metric, kept.kept)
        elif kept.counts is not None:
            self.estimates[name] = ratio_of_sums(*kept.counts, clusters=self.prompts, level=self.level)
        else:
            self.estimates[name] = mean_estimate(
                kept.values, clusters=self.prompts, level=self.level, seed=self.seed
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
