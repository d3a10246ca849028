"""Folders of pictures that show exactly what their prompts ask for."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from hasten.pipelines import mini
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import parse_caption


def true_pictures(folder: Path, count: int, side: int = 64, seed: int = 0) -> Path:
    """Pictures that show exactly what their prompts ask for."""
    folder.mkdir()
    scenes = [parse_caption(prompt) for prompt in mini.prompts(count)]
    pixels = ((render_scenes(scenes, seed, 0, side) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number:05d}.png")
    return folder


def prompts_file(path: Path, count: int) -> Path:
    path.write_text("\n".join(mini.prompts(count)))
    return path
