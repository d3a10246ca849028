"""Sheets of samples to look at while a miniature learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hasten.pipelines.mini.scenes import sample_scene

__all__ = ["CALL", "sample_sheet"]

CALL = {"num_inference_steps": 28, "guidance_scale": 3.0, "max_sequence_length": 0}
"""The call the image miniatures are meant for."""


def sample_sheet(pipe: Any, path: Path, count: int = 8) -> None:
    """Two rows of samples for the first captions of either split: 128 px above, 64 px (enlarged) below."""
    captions = [sample_scene(5, i, "train" if i % 2 else "held_out").caption() for i in range(count)]
    pipe.set_progress_bar_config(disable=True)
    sheet = Image.new("RGB", (128 * count, 256), "white")
    for row, pixels in enumerate((128, 64)):
        generators = [torch.Generator().manual_seed(i) for i in range(count)]
        images = pipe(captions, height=pixels, width=pixels, generator=generators, **CALL).images
        for column, image in enumerate(images):
            sheet.paste(image.resize((128, 128), Image.Resampling.NEAREST), (128 * column, 128 * row))
    sheet.save(path)
