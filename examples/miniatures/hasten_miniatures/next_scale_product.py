"""Samples and evaluation of both next-scale miniatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.extend import Pipeline
from hasten.pipelines.mini import prompts
from hasten.pipelines.mini.scenes import Split
from hasten.pipelines.mini.scoring import AttributeScorer, PixelParser
from hasten_miniatures.evaluate import Row, generate, judge_rows
from hasten_miniatures.grids import save_grid

__all__ = ["measure", "sample_sheet"]

SPLITS: tuple[Split, ...] = ("train", "held_out")


def sample_sheet(pipe: Pipeline, call: Mapping[str, Any], path: Path, count: int = 32) -> dict[str, float]:
    """Write samples of both splits to one PNG; returns the share of attributes that the pixel parser finds."""
    figures, sheets = {}, []
    for split in SPLITS:
        captions = prompts(count // 2, 5, split)
        images = generate(pipe, captions, call)
        figures[f"parser_{split}"] = PixelParser().score(images, captions).mean
        sheets += [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1 for image in images]
    save_grid(torch.stack(sheets), path, columns=count // 4)
    return figures


def measure(
    pipe: Pipeline,
    call: Mapping[str, Any],
    count: int,
    seed: int,
    progress: Callable[[int], None],
    *,
    bar: float,
) -> list[Row]:
    """Scores of both judges for ``count`` prompts of each split; ``bar`` is required for trained combinations."""
    scorers: dict[str, Any] = {"classifier": AttributeScorer(), "parser": PixelParser()}
    rows: list[Row] = []
    for split in SPLITS:
        captions = prompts(count, seed, split)
        images = generate(pipe, captions, call, seed=seed, progress=progress)
        rows += judge_rows(images, captions, scorers, split, bar if split == "train" else None)
    return rows
