"""Does the miniature draw what it is asked for? Two judges, two splits, full and quarter resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

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
"""(split, full resolution) -> the least share of attributes a good miniature gets right."""


class Scorer(Protocol):
    """Anything that scores pictures against prompts."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> AttributeScores:
        """Compare every picture with its prompt."""


@dataclass(frozen=True)
class Row:
    """Share of the attributes asked for that one judge found, with its 95 % interval (over prompts)."""

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
        """Whether the share lies below the bar."""
        return self.bar is not None and self.right < self.bar


def generate(
    pipe: Any,
    captions: Sequence[str],
    call: Mapping[str, Any],
    *,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Image]:
    """One picture per caption; picture ``i`` starts from the noise of seed ``seed + i`` whatever the batch size."""
    pipe.set_progress_bar_config(disable=True)
    images: list[Image] = []
    for first in range(0, len(captions), batch):
        chunk = list(captions[first : first + batch])
        noise = [torch.Generator().manual_seed(seed + first + i) for i in range(len(chunk))]
        images += pipe(chunk, generator=noise, **call).images
        progress(len(chunk))
    return images


def evaluate(
    pipe: Any,
    call: Mapping[str, Any],
    scorers: Mapping[str, Scorer],
    count: int,
    *,
    bars: Mapping[tuple[Split, bool], float] = BARS,
    halves: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """Sample ``count`` prompts of both splits at the full side, and at half of it, and let every scorer judge them.

    Args:
        pipe: the text-to-image pipeline.
        call: its recommended arguments, ``height`` and ``width`` among them.
        scorers: judges by name.
        count: prompts per split and size.
        bars: least shares, see :data:`BARS`.
        halves: whether the model was trained at half the side, too.
        seed: of prompts and noise.
        progress: called with the number of pictures made.
    """
    rows: list[Row] = []
    for full in (True, False) if halves else (True,):
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
    """One row for each judge: the share of the attributes asked for that it finds in the pictures."""
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
