"""Sheets of samples to look at while a miniature learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hasten.extend import Pipeline
from hasten.pipelines.mini import prompts
from hasten.pipelines.mini.scoring import PixelParser
from hasten_miniatures.evaluate import generate
from hasten_miniatures.grids import save_grid

__all__ = ["sample_sheet"]


def sample_sheet(
    pipe: Pipeline, call: Mapping[str, Any], path: Path, count: int = 8, sides: Sequence[int] | None = None
) -> dict[str, float]:
    """Sample captions of both splits at the call's side and at half of it, or at ``sides``, into one PNG.

    Returns:
        Share of the attributes asked for that the pixel parser finds, by size.
    """
    captions = prompts(count // 2, 5, "train") + prompts(count - count // 2, 5, "held_out")
    sheets, figures = [], {}
    side = call["height"]
    for pixels in sides or (side, side // 2):
        images = generate(pipe, captions, {**call, "height": pixels, "width": pixels})
        figures[f"parser_{pixels}"] = PixelParser().score(images, captions).mean
        stack = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
        sheets.append(F.interpolate(stack.float() / 127.5 - 1, size=(side, side), mode="nearest"))
    save_grid(torch.cat(sheets), path, columns=8)
    return figures
