"""The contrastive text-image model: text encoder of the pipelines and feature network of the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten_miniatures.batches import scene_batch
from hasten_miniatures.grids import save_grid
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.text import MAX_TOKENS, build_tokenizer, tokenize, vocabulary
from hasten_miniatures.training import Recipe, step_generator

__all__ = ["Contrastive", "build_clip", "export_clip", "make_recipe", "preprocess"]

IMAGE_SIZE = 64
WIDTH = 96


def build_clip() -> Any:
    """An untrained CLIPModel of about 0.8 M parameters for 64 px pictures and 24 words."""
    from transformers import CLIPConfig, CLIPModel

    words = vocabulary()
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        # The default initialisation assumes towers ten times as wide and starts almost without signal.
        "initializer_factor": 2.0,
    }
    text = tower | {
        "vocab_size": len(words),
        "max_position_embeddings": MAX_TOKENS,
        "num_hidden_layers": 3,
        "bos_token_id": words["<start>"],
        "eos_token_id": words["<end>"],
        "pad_token_id": words["<pad>"],
    }
    vision = tower | {
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "num_hidden_layers": 4,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIPModel(config)


def preprocess(images: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1], resized by area averaging to (B, 3, 64, 64) for the vision tower."""
    if images.shape[-1] == IMAGE_SIZE:
        return images
    return F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="area")


class Contrastive(Recipe):
    """Symmetric cross entropy over the similarity matrix of the batch (Radford et al. 2021)."""

    name = "text-image"
    schedule = Schedule(steps=1200, learning_rate=1e-3, weight_decay=1e-2)
    batch = 96

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()

    def build(self) -> nn.Module:
        """The untrained model."""
        model: nn.Module = build_clip()
        return model

    def loss(
        self,
        model: nn.Module,
        step: int,  # noqa: ARG002
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and retrieval accuracy within the batch."""
        device = next(model.parameters()).device
        scenes, images = scene_batch(self.batch, IMAGE_SIZE, generator)
        tokens = tokenize(self.tokenizer, [scene.caption() for scene in scenes])
        with mixed_precision(device):
            out = model(
                input_ids=tokens.input_ids.to(device),
                pixel_values=preprocess(_disturbed(images, generator)).to(device),
            )
        logits = out.logits_per_image.float()
        truth = torch.arange(len(scenes), device=device)
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        return loss, {"retrieval": float((logits.argmax(1) == truth).float().mean())}

    @torch.no_grad()
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write the similarity matrix of sixteen scenes and captions; returns the retrieval accuracy of 200 scenes."""
        scenes, images = scene_batch(200, IMAGE_SIZE, step_generator(1, step))
        tokens = tokenize(self.tokenizer, [scene.caption() for scene in scenes])
        device = next(model.parameters()).device
        out = model(input_ids=tokens.input_ids.to(device), pixel_values=images.to(device))
        similarity = out.logits_per_image / out.logits_per_image.abs().max()
        picture = similarity[:16, :16].expand(1, 3, -1, -1)
        save_grid(F.interpolate(picture, scale_factor=16.0), folder / f"similarity-{step:06d}.png", columns=1)
        hits = similarity.argmax(1).cpu() == torch.arange(len(scenes))
        return {"retrieval_of_200": float(hits.float().mean())}


def make_recipe(root: Path, *, device: str, compiled: bool) -> Contrastive:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    return Contrastive()


def _disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    # Generated pictures are slightly soft and noisy, which must not matter.
    noise = torch.randn(images.shape, generator=generator) * 0.05 * torch.rand(1, generator=generator)
    return (images + noise).clamp(-1, 1)


def export_clip(model: Any, folder: Path) -> None:
    """Write the model in half precision and its tokenizer, in the layout of transformers."""
    model.half().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
