"""Evaluation of text-to-image miniatures: share of the requested attributes, by two judges and for two splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hasten.extend import Pipeline
from hasten.pipelines.mini import prompts
from hasten.pipelines.mini.scenes import Split
from hasten.pipelines.mini.scoring import AttributeScores

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BARS", "Row", "Scorer", "evaluate", "generate", "judge_rows"]

BARS: dict[tuple[Split, bool], float] = {
    ("train", True): 0.9,
    ("held_out", True): 0.8,
    ("train", False): 0.85,
}
"""(split, full resolution) -> required share of right attributes."""


class Scorer(Protocol):
    """Scores pictures by their prompts."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> AttributeScores:
        """Compare every picture with its prompt."""


@dataclass(frozen=True)
class Row:
    """Share of the requested attributes that one judge found, with its 95 % interval over prompts."""

    split: str
    pixels: int
    judge: str
    right: float
    low: float
    high: float
    prompts: int
    bar: float | None
    by_attribute: Mapping[str, float]

    @property
    def missed(self) -> bool:
        """Whether the share is below the bar."""
        return self.bar is not None and self.right < self.bar


def generate(
    pipe: Any,
    captions: Sequence[str],
    call: Mapping[str, Any],
    *,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int], None] = lambda _: None,
    output: str = "images",
) -> list[Any]:
    """One sample per caption; sample ``i`` starts from the noise of seed ``seed + i``, for any batch size.

    ``output`` is the field of the pipeline's output with the samples.
    """
    pipe.set_progress_bar_config(disable=True)
    samples: list[Any] = []
    for first in range(0, len(captions), batch):
        chunk = list(captions[first : first + batch])
        noise = [torch.Generator().manual_seed(seed + first + i) for i in range(len(chunk))]
        samples += list(getattr(pipe(chunk, generator=noise, **call), output))
        progress(len(chunk))
    return samples


def evaluate(
    pipe: Pipeline,
    call: Mapping[str, Any],
    scorers: Mapping[str, Scorer],
    count: int,
    *,
    bars: Mapping[tuple[Split, bool], float] = BARS,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """Generate ``count`` prompts of both splits, and let every scorer judge the pictures.

    This is done at full size, and also at half of each side if ``bars`` has an entry for it.

    Args:
        pipe: the text-to-image pipeline.
        call: its recommended arguments, including ``height`` and ``width``.
        scorers: judges by name.
        count: prompts per split and size.
        bars: required shares, see :data:`BARS`.
        seed: seed of prompts and noise.
        progress: called with the number of new pictures.
    """
    rows: list[Row] = []
    for full in sorted({full for _, full in bars}, reverse=True):
        pixels = call["height"] if full else call["height"] // 2
        for split in ("train", "held_out"):
            captions = prompts(count, seed, split)
            sized = {**call, "height": pixels, "width": pixels}
            images = generate(pipe, captions, sized, seed=seed, progress=progress)
            rows += judge_rows(images, captions, scorers, split, bars.get((split, full)))
    return rows


def judge_rows(
    images: Sequence[Image],
    captions: Sequence[str],
    scorers: Mapping[str, Scorer],
    split: str,
    bar: float | None,
) -> list[Row]:
    """One row per judge: the share of the requested attributes that it finds in the pictures."""
    from hasten.eval.statistics.proportions import ratio_of_sums

    rows = []
    for name, scorer in scorers.items():
        scores = scorer.score(images, captions)
        estimate = ratio_of_sums(scores.right, scores.asked)
        rows.append(
            Row(
                split=split,
                pixels=images[0].height,
                judge=name,
                right=estimate.value,
                low=estimate.low,
                high=estimate.high,
                prompts=len(captions),
                bar=bar,
                by_attribute=scores.by_attribute(),
            )
        )
    return rows
