"""Side-by-side picture grids with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["comparison_grid"]

_MARGIN = 8
_TEXT = 13


def comparison_grid(
    columns: Mapping[str, Sequence[Image.Image]], rows: Sequence[str], cell: int = 160
) -> Image.Image:
    """One row per prompt, one column per configuration.

    Args:
        columns: title -> images, all of the same length.
        rows: the prompt of each row, written at the left.
        cell: side of a picture in pixels; pictures are enlarged with sharp pixels or shrunk smoothly.

    Returns:
        An RGB image.
    """
    font = ImageFont.load_default(size=_TEXT)
    titles = [_wrap(title, cell) for title in columns]
    lines = max(title.count("\n") + 1 for title in titles)
    label, header = 190, (lines + 1) * _TEXT + _MARGIN // 2
    step = cell + _MARGIN
    width = label + step * len(columns) + _MARGIN
    sheet = Image.new("RGB", (width, header + step * len(rows) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in enumerate(titles):
        draw.multiline_text((label + x * step, _MARGIN // 2), title, fill="black", font=font, spacing=1)
    for y, prompt in enumerate(rows):
        top = header + y * step
        draw.multiline_text((_MARGIN, top), _wrap(prompt, label - 2 * _MARGIN), fill="black", font=font)
        for x, images in enumerate(columns.values()):
            sheet.paste(_fit(images[y], cell), (label + x * step, top))
    return sheet


def _fit(image: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(
        size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    )


def _wrap(text: str, width: int) -> str:
    return textwrap.fill(text, max(8, int(width / (_TEXT * 0.52))))
