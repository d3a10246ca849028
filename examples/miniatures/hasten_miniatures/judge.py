"""Training of the attribute classifier that is shipped with the scorers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.pipelines.mini.judge import HEADS, IMAGE_SIZE, Judge
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import BACKGROUNDS, Scene, sample_scene
from hasten_miniatures.grids import save_grid
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.training import Recipe, step_generator

__all__ = ["JudgeRecipe", "export_judge", "make_recipe"]

_TEST_STREAM = 2**42


class JudgeRecipe(Recipe):
    """Cross entropy of every attribute, on clean, blurred, noisy and autoencoded scenes of both splits.

    Args:
        vae: the autoencoder, whose artefacts the judge has to ignore.
    """

    name = "judge"
    schedule = Schedule(steps=2000, learning_rate=2e-3, decay_from=0.5, average=0.995)
    batch = 64
    round_trips = 8
    """Pictures of a batch that pass through the autoencoder."""

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
        """Loss of one batch, and the share of right attributes."""
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
        """Write disturbed training pictures; returns the share of right attributes on clean scenes of both sizes."""
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
    from hasten_miniatures.runs import load_autoencoder

    return JudgeRecipe(load_autoencoder(root).to(device))


def _targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Class numbers by head; -1 if a scene has no second group."""
    targets = {"background": [tuple(BACKGROUNDS).index(scene.background) for scene in scenes]}
    for number in (1, 2):
        groups = [scene.groups[number - 1] if number <= len(scene.groups) else None for scene in scenes]
        targets[f"count {number}"] = [group.count if group else 0 for group in groups]
        for name, values in HEADS.items():
            targets[f"{name} {number}"] = [
                values.index(getattr(group, name)) if group else -1 for group in groups
            ]
    return {name: torch.tensor(column) for name, column in targets.items()}


def export_judge(judge: nn.Module, folder: Path) -> None:
    """Write the weights in half precision, and the names of the classes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    classes = {"background": tuple(BACKGROUNDS), **HEADS}
    (folder / "config.json").write_text(
        json.dumps({"image_size": IMAGE_SIZE, "classes": classes}, indent=2) + "\n"
    )
