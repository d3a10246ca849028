"""Sheets of samples to look at while a miniature learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hasten.pipelines.mini._models import prompts
from hasten.pipelines.mini.evaluate import generate
from hasten.pipelines.mini.grids import save_grid
from hasten.pipelines.mini.scoring import PixelParser

__all__ = ["CALL", "sample_sheet"]

CALL = {
    "num_inference_steps": 28,
    "guidance_scale": 3.0,
    "max_sequence_length": 0,
    "height": 128,
    "width": 128,
}
"""The call the text-to-image miniature is meant for."""


def sample_sheet(
    pipe: Any,
    path: Path,
    count: int = 8,
    call: Mapping[str, Any] = CALL,
    sides: Sequence[int] = (128, 64),
) -> dict[str, float]:
    """Sample captions of both splits into one PNG, a row or more for each side, small ones enlarged.

    Returns:
        Share of the attributes asked for that the pixel parser finds, by size.
    """
    captions = prompts(count // 2, 5, "train") + prompts(count - count // 2, 5, "held_out")
    sheets, figures = [], {}
    for pixels in sides:
        images = generate(pipe, captions, {**call, "height": pixels, "width": pixels})
        figures[f"parser_{pixels}"] = PixelParser().score(images, captions).mean
        stack = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
        sheets.append(F.interpolate(stack.float() / 127.5 - 1, size=(128, 128), mode="nearest"))
    save_grid(torch.cat(sheets), path, columns=8)
    return figures
