"""``mini/var``: a text-conditional VARPipeline of eight scales for 64 px scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.pipelines.mini.contrastive import WIDTH
from hasten.pipelines.mini.next_scale import (
    LatentPool,
    initialise,
    scale_weights,
    stored_pool,
    weighted_cross_entropy,
)
from hasten.pipelines.mini.scale_tokens import PIXELS, SCHEDULE
from hasten.pipelines.mini.schedule import Schedule
from hasten.pipelines.mini.text import MAX_TOKENS
from hasten.pipelines.mini.training import Recipe
from hasten.pipelines.mini.var_tokenizer import TokenizerTraining, VarTokenizer
from hasten.pipelines.var.transformer import Conditioning, NextScaleTransformer
from hasten.pipelines.var.vq_model import MultiScaleVQModel

__all__ = ["TextToScales", "build_transformer", "make_recipe"]


def build_transformer() -> NextScaleTransformer:
    """An untrained transformer of about 1.6 M parameters: five blocks of width 128 with four heads."""
    return NextScaleTransformer(
        num_layers=5,
        hidden_size=128,
        num_heads=4,
        token_dim=16,
        num_outputs=512,
        schedule=SCHEDULE,
        num_levels=len(SCHEDULE),
        condition="text",
        text_width=WIDTH,
        text_tokens=MAX_TOKENS,
        pool_heads=4,
        shared_modulation=True,
    )


class TextToScales(Recipe):
    """Cross entropy of every token of every scale, given the scales before it with some codes replaced at random.

    What a wrong code leaves is coded by the scales after it, so that the model learns to repair its own mistakes
    (the idea
    of Infinity's bitwise self-correction, with codes).

    Args:
        vae: the trained tokenizer.
        tower: the trained text tower.
        images: scenes in the pool.
        cache: folder that keeps the encoded pool for a resumed run.
        compiled: run the transformer through ``torch.compile``.
    """

    name = "var"
    schedule = Schedule(steps=3600, learning_rate=2e-3, warmup=150, decay_from=0.5, average=0.998)
    coarse_steps, coarse_scales = 1200, 6
    """The run begins with steps on the first scales alone, which decide the layout, at a third of the cost."""
    coarse_batch, batch = 24, 16
    most_replaced = 0.15
    """Largest share of codes that are replaced in a picture; the share is drawn evenly from zero upwards."""

    def __init__(
        self,
        vae: MultiScaleVQModel,
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
        """As for every recipe, and without the coarse steps."""
        super().refine()
        self.coarse_steps = 0

    def build(self) -> nn.Module:
        """The untrained transformer."""
        return initialise(build_transformer())

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch and the share of tokens that were the likeliest."""
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
        with torch.autocast(device.type, torch.bfloat16):
            logits = self._forward(inputs.to(device), known)
        loss = weighted_cross_entropy(
            logits, targets.to(device), self._weights[: targets.shape[1]].to(device)
        )
        right = float((logits.detach().argmax(-1).cpu() == targets).float().mean())
        return loss, {"right": right, "tokens": float(targets.shape[1])}

    @torch.no_grad()
    def _teach(self, latents: Tensor, scales: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, C) of the first scales, from codes of which some are wrong, and the right codes (B, T)."""
        book = self.vae.quantize
        share = self.most_replaced * torch.rand((len(latents), 1), generator=generator)
        total = torch.zeros_like(latents)
        inputs, targets = [latents.new_zeros(len(latents), 1, latents.shape[1])], []
        for scale, grid in enumerate(SCHEDULE[:scales]):
            rest = F.interpolate(latents - total, size=grid, mode="area")
            right = book.nearest(rest)
            targets.append(right)
            if scale == scales - 1:
                break
            wrong = torch.randint(self.vae.classes, right.shape, generator=generator)
            used = torch.where(torch.rand(right.shape, generator=generator) < share, wrong, right)
            total = self.vae.add_scale(total, used, scale, SCHEDULE)
            inputs.append(self.vae.next_input(total, scale + 1, SCHEDULE))
        return torch.cat(inputs, 1), torch.cat(targets, 1)

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """A sheet of samples, and what the pixel parser finds in them."""
        from hasten.pipelines.mini.var_product import assemble, sample_sheet

        return sample_sheet(assemble(self.vae, self.tower, model), folder / f"samples-{step:06d}.png")

    def _scenes(self) -> LatentPool:
        if self._pool is None:
            seed = 3
            if self.cache is None:
                self._pool = LatentPool.make(self.vae, self.tower, self.images, PIXELS, seed)
            else:
                path = self.cache / f"pool-{self.images}.pt"
                self._pool = stored_pool(path, self.vae, self.tower, self.images, PIXELS, seed)
        return self._pool


def load_tokenizer(root: Path) -> MultiScaleVQModel:
    """The tokenizer trained in ``root``, else the bundled one."""
    from hasten.pipelines.mini.runs import load_bundled, load_trained

    if not (root / VarTokenizer.name).is_dir():
        return load_bundled(VarTokenizer.name, MultiScaleVQModel)
    return load_trained(VarTokenizer.name, root, TokenizerTraining()).vae


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToScales:
    """The recipe over the trained parts in ``root``."""
    from hasten.pipelines.mini.runs import load_text_tower

    vae, tower = load_tokenizer(root), load_text_tower(root).to(device)
    return TextToScales(vae, tower, cache=root / TextToScales.name, compiled=compiled)
