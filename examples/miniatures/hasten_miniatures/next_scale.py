"""Shared parts of the transformers of both next-scale miniatures: encoded scenes, training, architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import sample_scene
from hasten.pipelines.var.tokenizer import ScaleTokenizer
from hasten.pipelines.var.transformer import Conditioning, NextScaleTransformer
from hasten.schedules.scales import Schedule
from hasten_miniatures.contrastive import WIDTH
from hasten_miniatures.pools import stored_pool
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.scale_tokens import PIXELS, SCHEDULE
from hasten_miniatures.text import MAX_TOKENS, build_tokenizer, tokenize
from hasten_miniatures.training import Recipe

__all__ = ["LatentPool", "NextScaleTraining", "build_transformer", "encode_captions", "scale_weights"]


@torch.no_grad()
def encode_captions(tower: Any, tokenizer: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """States (B, 24, 96) of the last layer of the text tower, and the mask of the caption, boolean (B, 24)."""
    found = tokenize(tokenizer, captions)
    states = tower(found.input_ids.to(next(tower.parameters()).device)).last_hidden_state
    return states.float().cpu(), found.attention_mask.bool()


@dataclass(frozen=True)
class LatentPool:
    """Training scenes, encoded once.

    Args:
        latents: continuous latents (N, C, h, w) of the tokenizer, half precision.
        text: states of the captions (N, 24, 96), half precision.
        mask: boolean (N, 24), ``False`` for padding.
    """

    latents: Tensor
    text: Tensor
    mask: Tensor

    @classmethod
    def make(cls, vae: ScaleTokenizer, tower: Any, count: int, pixels: int, seed: int) -> LatentPool:
        """Render and encode ``count`` scenes of ``pixels`` squared from the stream ``seed``."""
        from rich.console import Console
        from rich.progress import track

        tokenizer, parts, chunk = build_tokenizer(), [], 64
        device = next(vae.parameters()).device
        for first in track(range(0, count, chunk), "encode scenes", console=Console(stderr=True)):
            scenes = [sample_scene(seed, i) for i in range(first, min(first + chunk, count))]
            images = render_scenes(scenes, seed, first, pixels).to(device)
            with torch.no_grad(), mixed_precision(device):
                latents = vae.encode(images).half().cpu()
            text, mask = encode_captions(tower, tokenizer, [scene.caption() for scene in scenes])
            parts.append((latents, text.half(), mask))
        return cls(*(torch.cat(column) for column in zip(*parts)))

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` random rows."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[rows].float(), self.text[rows].float(), self.mask[rows]


def scale_weights(schedule: Schedule) -> Tensor:
    """Loss weights (T,) of all tokens, with mean 1: a scale counts in proportion to the square root of its tokens."""
    counts = torch.tensor([rows * columns for rows, columns in schedule])
    weights = torch.repeat_interleave(counts.float().rsqrt(), counts)
    return weights / weights.mean()


def build_transformer(**options: Any) -> NextScaleTransformer:
    """An untrained transformer of about 1.6 M parameters: five blocks of width 128 with four heads.

    Args:
        **options: options that depend on the tokenizer.
    """
    model: NextScaleTransformer = NextScaleTransformer(
        num_layers=5,
        hidden_size=128,
        num_heads=4,
        schedule=SCHEDULE,
        num_levels=len(SCHEDULE),
        condition="text",
        text_width=WIDTH,
        text_tokens=MAX_TOKENS,
        pool_heads=4,
        shared_modulation=True,
        **options,
    )
    return model


@torch.no_grad()
def initialise(model: NextScaleTransformer) -> NextScaleTransformer:
    """Initialise with Xavier weights, and all residual branches with zeros."""
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


class NextScaleTraining(Recipe):
    """Cross entropy of every choice of every scale, given the earlier scales with some choices replaced at random.

    Later scales code the error of a wrong choice, so the model learns to correct its own mistakes. This is the bitwise
    self-correction of Infinity (arXiv 2412.04431), applied to codes as well.

    Args:
        vae: the trained tokenizer.
        tower: the trained text tower.
        images: number of scenes in the pool.
        cache: folder that stores the encoded pool for a resumed run.
        compiled: use ``torch.compile`` for the transformer.
    """

    coarse_steps, coarse_scales = 1200, 6
    """The first steps train only the first scales, which decide the layout, at a third of the cost."""
    coarse_batch, batch = 24, 16
    most_replaced = 0.15
    """Largest share of replaced choices; the share of a picture is drawn uniformly from zero to this."""

    def __init__(
        self,
        vae: ScaleTokenizer,
        tower: Any,
        *,
        images: int = 16_000,
        cache: Path | None = None,
        compiled: bool = False,
    ) -> None:
        self.vae, self.tower, self.images, self.cache = vae, tower, images, cache
        self.compiled = compiled
        self._pool: LatentPool | None = None
        self._forward: Any = None
        self._weights = scale_weights(SCHEDULE)

    def refine(self) -> None:
        """Skip the steps on the first scales, with a lower learning rate."""
        super().refine()
        self.coarse_steps = 0

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch, and the share of right choices."""
        device = next(model.parameters()).device
        coarse = step < self.coarse_steps
        count = self.coarse_batch if coarse else self.batch
        latents, text, mask = self._scenes().batch(count, generator)
        inputs, targets = self._teach(latents, self.coarse_scales if coarse else len(SCHEDULE), generator)
        unconditional = torch.rand(count, generator=generator) < 0.1
        known = Conditioning(
            SCHEDULE, text=text.to(device), text_mask=mask.to(device), unconditional=unconditional.to(device)
        )
        if self._forward is None:
            forced: Any = model.teacher_forced
            self._forward = torch.compile(forced) if self.compiled else forced
        with mixed_precision(device):
            logits = self._forward(inputs.to(device), known)
        tokens = inputs.shape[1]
        loss = self._cross_entropy(logits, targets.to(device), self._weights[:tokens].to(device))
        likeliest = logits.detach().unflatten(-1, (-1, self.vae.classes)).argmax(-1).cpu()
        right = float((likeliest.flatten(1) == targets).float().mean())
        return loss, {"right": right, "tokens": float(tokens)}

    def _cross_entropy(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Cross entropy of logits (B, T, choices * classes) and targets (B, T * choices), with token weights (T,)."""
        losses = F.cross_entropy(logits.reshape(-1, self.vae.classes), targets.flatten(), reduction="none")
        return (losses.view(len(logits), len(weights), -1) * weights[:, None]).mean()

    @torch.no_grad()
    def _teach(self, latents: Tensor, scales: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, C) of the first scales, from partly wrong choices, and the right choices."""
        share = self.most_replaced * torch.rand((len(latents), 1), generator=generator)
        total = torch.zeros_like(latents)
        inputs, targets = [self.vae.next_input(total, 0, SCHEDULE)], []
        for scale, grid in enumerate(SCHEDULE[:scales]):
            right = self.vae.choose(latents - total, grid)
            targets.append(right)
            if scale == scales - 1:
                break
            wrong = torch.randint(self.vae.classes, right.shape, generator=generator)
            used = torch.where(torch.rand(right.shape, generator=generator) < share, wrong, right)
            total = self.vae.add_scale(total, used, scale, SCHEDULE)
            inputs.append(self.vae.next_input(total, scale + 1, SCHEDULE))
        return torch.cat(inputs, 1), torch.cat(targets, 1)

    def _scenes(self) -> LatentPool:
        if self._pool is None:
            path = None if self.cache is None else self.cache / f"pool-{self.images}.pt"
            make = partial(LatentPool.make, self.vae, self.tower, self.images, PIXELS, seed=3)
            self._pool = stored_pool(LatentPool, path, make)
        return self._pool
