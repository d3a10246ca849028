"""Scores of every picture of a run, by metric and arm. What follows needs neither pictures nor networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.eval.compare.engine import BASELINE
from hasten.eval.compare.store import RunStore
from hasten.eval.metric import Batch, Features, Metric, SampleMetric, SetMetric, concatenate
from hasten.eval.pictures.images import to_uint8
from hasten.extend import ConfigError

__all__ = ["SampleScores", "SetScores", "sample_scores", "set_scores"]

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


@dataclass(frozen=True)
class SetScores:
    """Embeddings of every arm and of the reference, for a metric of whole sets."""

    metric: SetMetric
    features: Mapping[str, Features]
    reference: Any


def _batches(store: RunStore, arm: str, prompts: Sequence[str], metric: Metric) -> Iterator[Batch]:
    frames = len(store.open_frames(arm, 0))
    size = max(1, _BATCH // frames)
    for start in range(0, len(prompts), size):
        indices = range(start, min(start + size, len(prompts)))
        images = _frames(store, arm, indices)
        if len(images) != frames * len(indices):
            raise ConfigError(
                f"{arm}: the videos of prompts {start} to {indices[-1]} are not all {frames} frames long"
            )
        base = _frames(store, BASELINE, indices) if "baseline" in metric.needs else None
        yield Batch(images, tuple(prompts[i] for i in indices for _ in range(frames)), base, frames)


def _frames(store: RunStore, arm: str, indices: Iterable[int]) -> Tensor:
    return to_uint8([frame for i in indices for frame in store.open_frames(arm, i)])


def _embedded(store: RunStore, arm: str, prompts: Sequence[str], metric: Metric) -> dict[str, Tensor]:
    return concatenate([metric.embed(batch) for batch in _batches(store, arm, prompts, metric)])


def sample_scores(
    metric: SampleMetric, store: RunStore, arms: Sequence[str], prompts: Sequence[str]
) -> SampleScores:
    """Score the pictures of every arm.

    Raises:
        ConfigError: if a score is not finite, or the metric can't take the pictures.
    """
    values: dict[str, FloatArray] = {}
    counts: dict[str, tuple[FloatArray, FloatArray]] = {}
    for arm in arms:
        if arm == BASELINE and "baseline" in metric.needs:
            continue
        features = _embedded(store, arm, prompts, metric)
        scores = metric.averaged(metric.score(features)).to(torch.float64)
        values[arm] = scores.reshape(len(prompts), -1).mean(1).numpy()  # over the frames of each video
        bad = np.flatnonzero(~np.isfinite(values[arm]))
        if bad.size:
            raise ConfigError(
                f"{metric.name} of {arm!r} is not finite for prompt {bad[0]} ({bad.size} in all)"
            )
        answers = metric.counts(features)
        if answers is not None:
            right, asked = (column.reshape(len(prompts), -1).sum(1) for column in answers)
            counts[arm] = right.numpy(), asked.numpy()
    return SampleScores(metric, values, counts)


def set_scores(
    metric: SetMetric,
    store: RunStore,
    arms: Sequence[str],
    prompts: Sequence[str],
    reference: Any,
) -> SetScores:
    """Embed the pictures of every arm; ``reference`` is what the metric compares them with."""
    features = {arm: _embedded(store, arm, prompts, metric) for arm in arms}
    return SetScores(metric, features, reference)
