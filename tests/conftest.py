"""Without a GPU, Triton interprets its kernels. It reads this when it is first imported, by whichever test that is."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

os.environ.setdefault("HASTEN_CACHE", "")  # tests leave nothing in the user's cache

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _nothing_learned() -> Iterator[None]:
    """What the process remembers of one test's autoencoders, no other one finds."""
    yield
    if (learned := sys.modules.get("hasten.plugins.bottleneck.learned")) is not None:
        learned._unwritten.clear()


@pytest.fixture(scope="session")
def pictures() -> Callable[..., list[Any]]:
    """Renders scenes as 8-bit pictures: ``pictures(scenes, size, seed=0)``."""

    from PIL import Image

    from hasten.pipelines.mini.render import render_scenes

    def draw(scenes: Sequence[Any], size: int, seed: int = 0) -> list[Any]:
        pixels = ((render_scenes(scenes, seed, 0, size) + 1) * 127.5).round().byte()
        return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]

    return draw
