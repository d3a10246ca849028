"""The attribute classifier: a small convolutional network that reads the attributes of a scene from a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.extend import CheckpointError
from hasten.pipelines.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    ObjectGroup,
    Scene,
)
from hasten.weights import check_fit, read_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["COUNTS", "HEADS", "IMAGE_SIZE", "Judge", "load_judge", "read_scenes", "to_tensor"]

IMAGE_SIZE = 64
HEADS: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "place": tuple(PLACES),
}
COUNTS = 4
"""Number of classes of the count: 0 (no such group) to 3 objects."""


class Judge(nn.Module):
    """Four strided convolutions and one hidden layer, from 64 px pictures to logits by attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 48, 64, 64)
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.GroupNorm(8, outer), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 160), nn.SiLU())
        self.background = nn.Linear(160, len(BACKGROUNDS))
        sizes = {"count": COUNTS} | {name: len(values) for name, values in HEADS.items()}
        self.groups = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(160, size) for name, size in sizes.items()}) for _ in range(2)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of ``background``, ``count 1``, ``size 1``, ... ``place 2`` for (B, 3, H, W) in [-1, 1]."""
        if images.shape[-1] != IMAGE_SIZE:
            images = F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="area")
        hidden = self.body(images)
        logits = {"background": self.background(hidden)}
        for number, heads in enumerate(self.groups, 1):
            logits |= {f"{name} {number}": head(hidden) for name, head in heads.items()}  # type: ignore[operator]
        return logits


@torch.no_grad()
def read_scenes(judge: nn.Module, images: Tensor) -> list[Scene]:
    """The most probable scene for each of (B, 3, H, W) in [-1, 1]."""
    chosen = {name: logits.argmax(1).tolist() for name, logits in judge(images).items()}
    return [
        Scene(_groups(chosen, i), tuple(BACKGROUNDS)[chosen["background"][i]]) for i in range(len(images))
    ]


def _groups(chosen: dict[str, list[int]], row: int) -> tuple[ObjectGroup, ...]:
    groups = []
    for number in (1, 2):
        count = chosen[f"count {number}"][row]
        if count:
            named = {name: values[chosen[f"{name} {number}"][row]] for name, values in HEADS.items()}
            groups.append(ObjectGroup(count=count, **named))
    return tuple(groups)


def to_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures of any size as (B, 3, 64, 64) in [-1, 1], area-averaged."""
    pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() for image in images]
    shrunk = [F.interpolate(p[None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="area") for p in pixels]
    return torch.cat(shrunk) / 127.5 - 1


def load_judge(folder: Path) -> Judge:
    """The classifier of ``folder`` in single precision, frozen.

    Raises:
        CheckpointError: the folder contains no classifier, or a damaged one.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no attribute classifier at {path}; train one with `hasten mini train judge`")
    judge = Judge()
    weights = read_tensors(path, "reinstall hasten, or export the scorers again")
    check_fit(judge.state_dict(), weights, "the attribute classifier", path)
    judge.load_state_dict({name: value.float() for name, value in weights.items()})
    return judge.eval().requires_grad_(False)
