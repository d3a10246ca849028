"""Evaluation of video miniatures: share of the requested attributes and motions, by two judges, for two splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.extend import Pipeline
from hasten.pipelines.mini import prompts
from hasten.pipelines.mini.scenes import Split
from hasten.pipelines.mini.scoring import AttributeScores
from hasten_miniatures.evaluate import Row, generate
from hasten_miniatures.grids import save_grid
from hasten_miniatures.motion import Frames, VideoClassifier, VideoParser

__all__ = ["BARS", "evaluate_videos", "generate_videos", "video_sheet"]

BARS = {"motion": 0.8, "classifier": 0.8, "parser": 0.7}
"""Judge -> required share of right motions or of other right attributes. The parser compares outlines, and does not
recognise all shapes of real videos after the autoencoder either."""
_MODEL = "mini/t2v-dit"


def generate_videos(
    pipe: Pipeline,
    captions: Sequence[str],
    call: Mapping[str, Any],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Frames]:
    """One video (F, H, W, 3) per caption, RGB in [0, 1]; see :func:`hasten_miniatures.evaluate.generate`."""
    call = {**call, "output_type": "np"}
    return generate(pipe, captions, call, seed=seed, batch=8, progress=progress, output="frames")


def evaluate_videos(
    pipe: Pipeline,
    call: Mapping[str, Any],
    count: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[Row]:
    """Generate ``count`` prompts of both splits. Returns a row for motion, and a row per judge for other attributes.

    Args:
        pipe: the text-to-video pipeline.
        call: its recommended arguments.
        count: prompts per split.
        seed: of prompts and noise.
        progress: called with the number of videos made.
    """
    rows = []
    splits: tuple[Split, ...] = ("train", "held_out")
    for split in splits:
        captions = prompts(count, seed, split, _MODEL)
        videos = generate_videos(pipe, captions, call, seed=seed, progress=progress)
        parsed = VideoParser().score(videos, captions)
        classified = VideoClassifier().score(videos, captions)
        motion = AttributeScores(tuple({"motion 1": verdict["motion 1"]} for verdict in parsed.verdicts))
        others = [{k: v for k, v in verdict.items() if k != "motion 1"} for verdict in parsed.verdicts]
        judged = {"motion": motion, "parser": AttributeScores(tuple(others)), "classifier": classified}
        rows += [_row(split, call["height"], name, scores) for name, scores in judged.items()]
    return rows


def video_sheet(pipe: Pipeline, call: Mapping[str, Any], path: Path, count: int = 8) -> dict[str, float]:
    """Write samples of both splits to one PNG, a video per row with every other frame.

    Returns:
        Share of the requested attributes that the parser finds, by kind of attribute.
    """
    captions = prompts(count // 2, 5, "train", _MODEL) + prompts(count - count // 2, 5, "held_out", _MODEL)
    videos = generate_videos(pipe, captions, call)
    frames = torch.from_numpy(np.stack(videos)[:, ::2]).permute(0, 1, 4, 2, 3) * 2 - 1
    save_grid(frames.flatten(0, 1), path, columns=frames.shape[1])
    return VideoParser().score(videos, captions).by_attribute()


def _row(split: str, pixels: int, judge: str, scores: AttributeScores) -> Row:
    from hasten.eval.statistics.proportions import ratio_of_sums

    share = ratio_of_sums(scores.right, scores.asked)
    count = len(scores.asked)
    kinds = scores.by_attribute()
    return Row(split, pixels, judge, share.value, share.low, share.high, count, BARS[judge], kinds)
