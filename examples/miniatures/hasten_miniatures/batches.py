"""Endless seeded batches of scenes for training."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import Scene, sample_scene

__all__ = ["scene_batch"]


def scene_batch(count: int, size: int, generator: torch.Generator) -> tuple[list[Scene], Tensor]:
    """``count`` training scenes drawn with ``generator``: (scenes, float32 (count, 3, size, size) in [-1, 1])."""
    seed = int(torch.randint(2**40, (1,), generator=generator))
    scenes = [sample_scene(seed, index) for index in range(count)]
    return scenes, render_scenes(scenes, seed, 0, size)
