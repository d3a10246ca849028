"""Pictures side by side in one file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

__all__ = ["save_grid"]


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write (B, 3, H, W) in [-1, 1] as one PNG, ``columns`` to a row; B is a multiple of ``columns``."""
    from PIL import Image

    count, channels, height, width = images.shape
    rows = images.reshape(count // columns, columns, channels, height, width)
    sheet = rows.permute(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)
    Image.fromarray(((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()).save(path)
