"""Without a GPU, Triton interprets its kernels. It reads this when it is first imported, by whichever test that is."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HASTEN_CACHE", "")  # tests leave nothing in the user's cache

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of cache folders, a new one each time."""
    base = tmp_path_factory.mktemp("caches")
    return (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test keeps in the user's cache folder, no other one finds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(next(caches)))


@pytest.fixture(scope="session")
def pictures() -> Callable[..., list[Any]]:
    """Renders scenes as 8-bit pictures: ``pictures(scenes, size, seed=0)``."""

    from PIL import Image

    from hasten.pipelines.mini.render import render_scenes

    def draw(scenes: Sequence[Any], size: int, seed: int = 0) -> list[Any]:
        pixels = ((render_scenes(scenes, seed, 0, size) + 1) * 127.5).round().byte()
        return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]

    return draw
