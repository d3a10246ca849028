"""Registers the bundled miniatures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hasten.extend import Captions, Model, Split, hookimpl
from hasten.pipelines.mini.scenes import is_scene_caption, sample_scene

__all__ = ["SCENES", "WEIGHTS"]

WEIGHTS = Path(__file__).with_name("weights")
"""Folders of the bundled weights."""


def _caption(seed: int, index: int, split: Split) -> str:
    return sample_scene(seed, index, split).caption()


SCENES = Captions(
    _caption,
    is_scene_caption,
    ("mini_classifier", "mini_parser", "mini_text_image", "mini_frechet", "mini_mmd", "psnr", "ssim"),
)
"""The captioned scenes."""


@hookimpl
def hasten_register_models(register: Callable[[Model], None]) -> None:
    """Offer the bundled miniatures."""
    register(Model("mini/t2i-dit", WEIGHTS / "t2i-dit", SCENES))
