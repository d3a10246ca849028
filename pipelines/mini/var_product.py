"""What is shipped as ``mini/var``, and sheets of its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.pipelines.mini._models import prompts
from hasten.pipelines.mini.evaluate import Row, generate, judge_rows
from hasten.pipelines.mini.grids import save_grid
from hasten.pipelines.mini.product import Product
from hasten.pipelines.mini.scale_tokens import SCHEDULE
from hasten.pipelines.mini.scenes import Split
from hasten.pipelines.mini.scoring import PixelParser
from hasten.pipelines.mini.text import build_tokenizer
from hasten.pipelines.mini.var import TextToScales, build_transformer, load_tokenizer
from hasten.pipelines.mini.var_tokenizer import VarTokenizer
from hasten.pipelines.var.pipeline import VARPipeline
from hasten.pipelines.var.scheduler import NextScaleScheduler

__all__ = ["CALL", "PRODUCT", "assemble", "sample_sheet"]

CALL = {"num_inference_steps": len(SCHEDULE), "guidance_scale": 2.0, "top_k": 0, "top_p": 0.9}
"""The call the miniature is meant for."""
BARS: dict[Split, float | None] = {"train": 0.85, "held_out": None}
"""Split -> the least share of attributes that a good miniature gets right."""


def assemble(vae: Any, tower: Any, transformer: Any) -> VARPipeline:
    """The pipeline around the trained parts."""
    scheduler = NextScaleScheduler(guidance_scale=CALL["guidance_scale"], top_k=0, top_p=CALL["top_p"])
    return VARPipeline(transformer, vae, scheduler, tower, build_tokenizer())


def sample_sheet(pipe: Any, path: Path, count: int = 32, call: dict[str, Any] = CALL) -> dict[str, float]:
    """Sample captions of both splits into one PNG; returns the share of attributes the pixel parser finds."""
    figures, sheets = {}, []
    for split in ("train", "held_out"):
        captions = prompts(count // 2, 5, split)
        images = generate(pipe, captions, call)
        figures[f"parser_{split}"] = PixelParser().score(images, captions).mean
        sheets += [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1 for image in images]
    save_grid(torch.stack(sheets), path, columns=count // 4)
    return figures


def _measure(
    pipe: Any, call: Mapping[str, Any], count: int, seed: int, progress: Callable[[int], None]
) -> list[Row]:
    from hasten.pipelines.mini.scoring import AttributeScorer

    scorers: dict[str, Any] = {"classifier": AttributeScorer(), "parser": PixelParser()}
    rows: list[Row] = []
    for split, bar in BARS.items():
        captions = prompts(count, seed, split)
        images = generate(pipe, captions, call, seed=seed, progress=progress)
        rows += judge_rows(images, captions, scorers, split, bar)
    return rows


def _assemble_trained(root: Path) -> VARPipeline:
    from hasten.pipelines.mini.runs import load_text_tower, load_trained

    transformer = load_trained(TextToScales.name, root, build_transformer())
    return assemble(load_tokenizer(root), load_text_tower(root), transformer)


_TEXT = """
A text-conditional `VARPipeline` for captioned scenes of one to three simple objects at 64 px, generated in eight scales
of 1 to 64 tokens. The text tower is the one of the bundled contrastive model.

```python
pipe = hasten.load("mini/var")
image = pipe(
    "a large red circle on the left and a small blue star on the right on a white background",
    **hasten.pipelines.mini.recommended_call("mini/var"),
).images[0]
```

Figures of miniatures show trends and are not comparable with published ones.
"""

PRODUCT = Product(
    text=_TEXT,
    runs=("text-image", VarTokenizer.name, TextToScales.name),
    call=CALL,
    assemble=_assemble_trained,
    settings=lambda root: {},  # noqa: ARG005
    measure=_measure,
    samples=2,
)
