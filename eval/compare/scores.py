"""Scores of every picture of a run, by metric and arm. What follows needs neither pictures nor networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hasten.eval.compare.engine import BASELINE
from hasten.eval.compare.store import RunStore
from hasten.eval.metric import Batch, Features, Metric, SampleMetric, SetMetric
from hasten.eval.pictures.loading import Loaded, Reading, corresponding
from hasten.eval.pictures.sources import ImageSource, read_image
from hasten.eval.scoring.kept import KeptFeatures, KeptScores, keep
from hasten.extend import ConfigError

__all__ = ["SampleScores", "SetScores", "score_arm"]

FloatArray = NDArray[np.float64]

_BATCH = 32


@dataclass(frozen=True)
class SampleScores:
    """Scores of a metric that has one for each picture.

    Args:
        metric: what was measured.
        values: arm -> one finite score per prompt. Without the baseline where the metric compares with it.
        counts: arm -> (right, asked) per prompt, for metrics whose figure is a ratio of sums.
    """

    metric: SampleMetric
    values: Mapping[str, FloatArray]
    counts: Mapping[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)

    @classmethod
    def of(cls, arms: Mapping[str, KeptScores], prompts: int) -> SampleScores:
        """What was kept of every arm, by prompt: the frames of a video are one sample.

        Raises:
            ConfigError: if a score is not finite.
        """
        metric = next(iter(arms.values())).metric
        values: dict[str, FloatArray] = {}
        counts: dict[str, tuple[FloatArray, FloatArray]] = {}
        for arm, kept in arms.items():
            values[arm] = kept.values.reshape(prompts, -1).mean(1)
            bad = np.flatnonzero(~np.isfinite(values[arm]))
            if bad.size:
                raise ConfigError(
                    f"{metric.name} of {arm!r} is not finite for prompt {bad[0]} ({bad.size} in all)"
                )
            if kept.counts is not None:
                right, asked = (column.reshape(prompts, -1).sum(1) for column in kept.counts)
                counts[arm] = right, asked
        return cls(metric, values, counts)


@dataclass(frozen=True)
class SetScores:
    """Embeddings of every arm and of the reference, for a metric of whole sets."""

    metric: SetMetric
    features: Mapping[str, Features]
    reference: Any


class _ArmPictures(ImageSource):
    """The frames of every prompt of an arm, one after the other."""

    def __init__(self, store: RunStore, arm: str, prompts: int) -> None:
        files = [store.frame_files(arm, index) for index in range(prompts)]
        self.frames = len(files[0])
        odd = [index for index, found in enumerate(files) if len(found) != self.frames]
        if odd:
            raise ConfigError(
                f"{arm}: the videos are not all {self.frames} frames long; that of prompt {odd[0]} has "
                f"{len(files[odd[0]])}"
            )
        self._files: list[Path] = [file for found in files for file in found]
        super().__init__(arm, [str(number) for number in range(len(self._files))], frozenset({".png"}))

    def load(self, index: int) -> Tensor:
        """See :meth:`ImageSource.load`."""
        return read_image(self._files[index], str(self._files[index]))


def score_arm(
    store: RunStore, arm: str, prompts: Sequence[str], metrics: Sequence[Metric]
) -> dict[str, KeptScores | KeptFeatures]:
    """Metric -> what it keeps of the pictures of an arm, which are read once.

    The baseline is left out by metrics that compare with it.

    Raises:
        ConfigError: if a picture can't be used, or a metric can't take it.
    """
    used = [metric for metric in metrics if not (arm == BASELINE and "baseline" in metric.needs)]
    kept = {metric.name: keep(metric) for metric in used}
    beside = any("baseline" in metric.needs for metric in used)
    for batch in _batches(store, arm, prompts, beside=beside):
        for one in kept.values():
            one.add(batch)
    return kept


def _batches(store: RunStore, arm: str, prompts: Sequence[str], *, beside: bool) -> Iterator[Batch]:
    own = _ArmPictures(store, arm, len(prompts))
    frames = own.frames
    sources = [own, *([_ArmPictures(store, BASELINE, len(prompts))] if beside else [])]
    reading = Reading(max(1, _BATCH // frames) * frames)
    for places, images in corresponding(sources, Loaded(), reading):
        texts = tuple(prompts[place // frames] for place in places)
        yield Batch(images[0], texts, images[1] if beside else None, frames)
