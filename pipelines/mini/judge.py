"""The attribute classifier: a small convolutional network that reads a scene's attributes from a picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten._errors import CheckpointError
from hasten.pipelines.mini.grids import save_grid
from hasten.pipelines.mini.precision import mixed_precision
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Group,
    Scene,
    sample_scene,
)
from hasten.pipelines.mini.schedule import Schedule
from hasten.pipelines.mini.training import Recipe, step_generator

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Judge", "JudgeRecipe", "export_judge", "load_judge", "make_recipe", "read_scenes", "to_tensor"]

IMAGE_SIZE = 64
HEADS: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "place": tuple(PLACES),
}
_TEST_STREAM = 2**42
COUNTS = 4
"""A group has 0 (there is none) to 3 objects."""


class Judge(nn.Module):
    """Four strided convolutions and one hidden layer; 64 px pictures in, logits by attribute out."""

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


class JudgeRecipe(Recipe):
    """Cross entropy of every attribute, on clean, blurred, noisy and autoencoded scenes of both splits.

    Args:
        vae: the autoencoder whose traces the judge has to see past.
    """

    name = "judge"
    schedule = Schedule(steps=2000, learning_rate=2e-3, decay_from=0.5, average=0.995)
    batch = 64
    round_trips = 8
    """Pictures of a batch that go through the autoencoder."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def build(self) -> nn.Module:
        """The untrained classifier."""
        return Judge()

    def loss(
        self,
        model: nn.Module,
        step: int,  # noqa: ARG002
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch and the share of attributes that were right."""
        seed = int(torch.randint(2**40, (1,), generator=generator))
        scenes = [sample_scene(seed, i, "train" if i % 5 else "held_out") for i in range(self.batch)]
        images = self._disturbed(render_scenes(scenes, seed, 0, IMAGE_SIZE), generator)
        device = next(model.parameters()).device
        logits, truth = model(images.to(device)), _targets(scenes)
        loss = torch.stack(
            [F.cross_entropy(logits[k], v.to(device), ignore_index=-1) for k, v in truth.items()]
        ).sum()
        hits = [(logits[k].argmax(1).cpu() == v)[v >= 0] for k, v in truth.items()]
        return loss, {"right": float(torch.cat(hits).float().mean())}

    @torch.no_grad()
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Share of attributes right on clean scenes of either size, and the disturbed pictures it learns from."""
        scenes = [sample_scene(_TEST_STREAM, i, "train" if i % 5 else "held_out") for i in range(160)]
        figures = {}
        for pixels in (64, 128):
            logits = model(render_scenes(scenes, _TEST_STREAM, 0, pixels).to(next(model.parameters()).device))
            hits = [(logits[k].argmax(1).cpu() == v)[v >= 0] for k, v in _targets(scenes).items()]
            figures[f"right_{pixels}"] = float(torch.cat(hits).float().mean())
        clean = render_scenes(scenes[:16], _TEST_STREAM, 0, IMAGE_SIZE)
        save_grid(
            self._disturbed(clean, step_generator(1, step)), folder / f"disturbed-{step:06d}.png", columns=8
        )
        return figures

    @torch.no_grad()
    def _disturbed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        device = next(self.vae.parameters()).device
        with mixed_precision(device):
            posterior = self.vae.encode(images[: self.round_trips].to(device)).latent_dist.mode()
            decoded = self.vae.decode(posterior).sample.float().cpu()
        soft = F.avg_pool2d(F.pad(images[self.round_trips :], (1, 1, 1, 1), mode="replicate"), 3, 1)
        blur = torch.rand((len(soft), 1, 1, 1), generator=generator) * 0.8
        images = torch.cat([decoded, torch.lerp(images[self.round_trips :], soft, blur)])
        strength = 0.08 * torch.rand((len(images), 1, 1, 1), generator=generator)
        tint = 0.04 * torch.randn((len(images), 3, 1, 1), generator=generator)
        return (images + tint + strength * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def make_recipe(root: Path, *, device: str, compiled: bool) -> JudgeRecipe:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    from hasten.pipelines.mini.runs import load_autoencoder

    return JudgeRecipe(load_autoencoder(root).to(device))


def _targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Class numbers by head; -1 where a scene has no second group."""
    targets = {"background": [tuple(BACKGROUNDS).index(scene.background) for scene in scenes]}
    for number in (1, 2):
        groups = [scene.groups[number - 1] if number <= len(scene.groups) else None for scene in scenes]
        targets[f"count {number}"] = [group.count if group else 0 for group in groups]
        for name, values in HEADS.items():
            targets[f"{name} {number}"] = [
                values.index(getattr(group, name)) if group else -1 for group in groups
            ]
    return {name: torch.tensor(column) for name, column in targets.items()}


@torch.no_grad()
def read_scenes(judge: nn.Module, images: Tensor) -> list[Scene]:
    """The most probable scene for each of (B, 3, H, W) in [-1, 1]."""
    chosen = {name: logits.argmax(1).tolist() for name, logits in judge(images).items()}
    return [
        Scene(_groups(chosen, i), tuple(BACKGROUNDS)[chosen["background"][i]]) for i in range(len(images))
    ]


def _groups(chosen: dict[str, list[int]], row: int) -> tuple[Group, ...]:
    groups = []
    for number in (1, 2):
        count = chosen[f"count {number}"][row]
        if count:
            named = {name: values[chosen[f"{name} {number}"][row]] for name, values in HEADS.items()}
            groups.append(Group(count=count, **named))
    return tuple(groups)


def to_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures of any size as (B, 3, 64, 64) in [-1, 1], area-averaged."""
    pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() for image in images]
    shrunk = [F.interpolate(p[None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="area") for p in pixels]
    return torch.cat(shrunk) / 127.5 - 1


def export_judge(judge: nn.Module, folder: Path) -> None:
    """Write the weights in half precision and the names of the classes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    classes = {"background": tuple(BACKGROUNDS), **HEADS}
    (folder / "config.json").write_text(
        json.dumps({"image_size": IMAGE_SIZE, "classes": classes}, indent=2) + "\n"
    )


def load_judge(folder: Path) -> Judge:
    """The classifier of ``folder`` in single precision, frozen.

    Raises:
        CheckpointError: if the folder holds none.
    """
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no attribute classifier at {path}; train one with `hasten mini train judge`")
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)
