"""Fixtures of the tests that look at pictures."""

from collections.abc import Callable, Sequence

import pytest
from PIL import Image

from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import Scene


@pytest.fixture(scope="session")
def pictures() -> Callable[..., list[Image.Image]]:
    """Renders scenes as 8-bit pictures: ``pictures(scenes, size, seed=0)``."""

    def draw(scenes: Sequence[Scene], size: int, seed: int = 0) -> list[Image.Image]:
        pixels = ((render_scenes(scenes, seed, 0, size) + 1) * 127.5).round().byte()
        return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]

    return draw
