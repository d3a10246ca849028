"""What the recipes of both next-scale miniatures share: encoded scenes, corrupted teacher forcing, initial weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import sample_scene
from hasten.pipelines.mini.text import MAX_TOKENS, build_tokenizer
from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten.schedules.scales import Schedule

__all__ = ["LatentPool", "encode_captions", "initialise", "scale_weights", "stored_pool"]


@torch.no_grad()
def encode_captions(tower: Any, tokenizer: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """States (B, 24, 96) of the text tower's last layer, and which of them belong to the caption, (B, 24) boolean."""
    found = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    states = tower(found.input_ids.to(next(tower.parameters()).device)).last_hidden_state
    return states.float().cpu(), found.attention_mask.bool()


@dataclass(frozen=True)
class LatentPool:
    """Training scenes, encoded once.

    Args:
        latents: continuous latents (N, C, h, w) of the tokenizer, half precision.
        text: states of the captions (N, 24, 96), half precision.
        mask: which states count, (N, 24) boolean.
    """

    latents: Tensor
    text: Tensor
    mask: Tensor

    @classmethod
    def make(cls, vae: Any, tower: Any, count: int, pixels: int, seed: int) -> LatentPool:
        """Render and encode ``count`` scenes of ``pixels`` squared from the stream ``seed``."""
        from rich.console import Console
        from rich.progress import track

        tokenizer, parts, chunk = build_tokenizer(), [], 64
        device = next(vae.parameters()).device
        for first in track(range(0, count, chunk), "encode scenes", console=Console(stderr=True)):
            scenes = [sample_scene(seed, i) for i in range(first, min(first + chunk, count))]
            images = render_scenes(scenes, seed, first, pixels).to(device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                latents = vae.encode(images).half().cpu()
            text, mask = encode_captions(tower, tokenizer, [scene.caption() for scene in scenes])
            parts.append((latents, text.half(), mask))
        return cls(*(torch.cat(column) for column in zip(*parts)))

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` random rows."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[rows].float(), self.text[rows].float(), self.mask[rows]


def stored_pool(path: Path, vae: Any, tower: Any, count: int, pixels: int, seed: int) -> LatentPool:
    """The pool at ``path``, made first if it is not there."""
    if path.exists():
        return LatentPool(**torch.load(path, weights_only=True))
    pool = LatentPool.make(vae, tower, count, pixels, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vars(pool), path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
    return pool


def scale_weights(schedule: Schedule) -> Tensor:
    """Weight (T,) of every token in the loss, mean 1: a scale counts with the square root of its number of tokens."""
    counts = torch.tensor([rows * columns for rows, columns in schedule])
    weights = torch.repeat_interleave(counts.float().rsqrt(), counts)
    return weights / weights.mean()


@torch.no_grad()
def initialise(model: NextScaleTransformer) -> NextScaleTransformer:
    """Xavier weights; every residual branch begins switched off."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for table in (model.start_pos, model.pos_embed):
        if table is not None:
            nn.init.normal_(table, std=0.02)
    for layer in (model.ada_shared, model.head_norm, *(block.cross_attn.to_out for block in model.blocks)):  # type: ignore[union-attr]
        nn.init.zeros_(layer.weight)  # type: ignore[union-attr, arg-type]
    nn.init.normal_(model.proj_out.weight, std=0.02)
    return model


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean cross entropy of logits (B, T, V) for targets (B, T), tokens weighted by (T,)."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses.view(targets.shape) * weights).mean()
