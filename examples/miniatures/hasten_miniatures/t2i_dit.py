"""The first stage of ``mini/t2i-dit``: a denoiser of StableDiffusion3 trained from 64 tokens upwards to 256."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import Pipeline
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import Split, sample_scene
from hasten_miniatures.autoencoder import encode, latent_spectrum
from hasten_miniatures.contrastive import WIDTH
from hasten_miniatures.evaluate import Row
from hasten_miniatures.pools import stored_pool
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.sheets import sample_sheet
from hasten_miniatures.text import MAX_TOKENS, build_tokenizer
from hasten_miniatures.training import Recipe

__all__ = [
    "Pool",
    "TextToImage",
    "assemble",
    "build_transformer",
    "encode_text",
    "make_recipe",
    "measure_images",
    "settings",
    "shift_of",
    "start_at_identity",
]

Embed = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Captions -> token states (B, tokens, width) and pooled embeddings (B, width)."""
CALL: dict[str, Any] = {
    "num_inference_steps": 28,
    "guidance_scale": 3.0,
    "max_sequence_length": 0,
    "height": 128,
    "width": 128,
}
"""The call the miniature is meant for."""
SHIFT = 2.0
"""Static timestep shift of the scheduler at full resolution; half of it at half the side (same SNR)."""
_JOINT = 2 * WIDTH


def shift_of(pixels: int) -> float:
    """Static timestep shift at ``pixels`` a side: proportional to it, so that every size has the same SNR per patch."""
    return pixels / 64


def build_transformer(side: int = 128, positions: int = 32) -> Any:
    """An untrained SD3Transformer2DModel of about 3.1 M parameters: 6 joint blocks of width 120.

    Args:
        side: pixels of a side of the pictures that a call without a size makes.
        positions: tokens of a side of the largest picture.
    """
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=side // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=40,
        num_attention_heads=3,
        caption_projection_dim=120,
        joint_attention_dim=_JOINT,
        pooled_projection_dim=_JOINT,
        pos_embed_max_size=positions,
        qk_norm="rms_norm",
    )


@torch.no_grad()
def encode_text(tower: Any, tokenizer: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token states (B, 24, 96) and pooled embeddings (B, 96) of the text tower, as the pipeline reads them.

    The pipeline concatenates the result of its two CLIP slots; here both hold the same tower.
    """
    ids = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    out = tower(ids.input_ids.to(next(tower.parameters()).device), output_hidden_states=True)
    return out.hidden_states[-2].float(), out.text_embeds.float()


@dataclass(frozen=True)
class Pool:
    """Training scenes of one resolution, encoded once: what the denoiser needs of them, in half precision.

    Args:
        latents: normalised latents (N, 4, h, w).
        tokens: token states (N, 24, 96) of the captions.
        pooled: pooled embeddings (N, 96).
    """

    latents: Tensor
    tokens: Tensor
    pooled: Tensor

    @classmethod
    def make(cls, vae: Any, embed: Embed, count: int, pixels: int) -> Pool:
        """Render and encode ``count`` scenes of ``pixels`` squared; every size has scenes of its own."""
        from rich.console import Console
        from rich.progress import track

        device = next(vae.parameters()).device
        parts, chunk = [], 32
        for first in track(range(0, count, chunk), f"encode {pixels} px", console=Console(stderr=True)):
            scenes = [sample_scene(pixels, i) for i in range(first, first + chunk)]
            with mixed_precision(device):
                latents = encode(vae, render_scenes(scenes, pixels, first, pixels).to(device))
            parts.append((latents, *embed([scene.caption() for scene in scenes])))
        return cls(*(torch.cat(column).to("cpu", torch.float16) for column in zip(*parts)))

    @classmethod
    def stored(cls, cache: Path | None, vae: Any, embed: Embed, count: int, pixels: int) -> Pool:
        """The pool that lies in ``cache``, made and put there first if there is none."""
        path = None if cache is None else cache / f"pool-{pixels}-{count}.pt"
        return stored_pool(cls, path, partial(cls.make, vae, embed, count, pixels))

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` random rows, float32."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[rows].float(), self.tokens[rows].float(), self.pooled[rows].float()


class TextToImage(Recipe):
    """Rectified flow on latents, first at half of the side, then mostly at the whole with some halves kept in.

    Args:
        vae: the trained autoencoder, its shift and scale set.
        tower: the trained text tower (``CLIPTextModelWithProjection``).
        images: scenes in the pool of each resolution.
        cache: folder that keeps the encoded pools for a resumed run.
        compiled: run the denoiser through ``torch.compile`` (half again as fast on a CPU, needs a C++ compiler).
    """

    name = "t2i-dit"
    schedule = Schedule(steps=7000, learning_rate=1.2e-3, warmup=200, decay_from=0.65, average=0.999)
    call: Mapping[str, Any] = CALL
    """The call it is trained for; its height is the full resolution, half of it the low one."""
    low_steps = 1400
    """Steps at the low resolution before the first one at the full."""
    low_every = 8
    """In the rest, every so many steps is at the low one."""
    low_batch, full_batch = 64, 32
    dropped = 0.1
    """Share of the captions that become the empty one."""
    padded_from = 0.8
    """From this share of the run on, two steps in eight append the zero tokens of a default pipeline call."""

    def __init__(
        self,
        vae: Any,
        tower: Any,
        *,
        images: int = 16_000,
        compiled: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.vae, self.tower, self.cache = vae, tower, cache
        self.images, self.compiled = images, compiled
        self.empty = encode_text(tower, build_tokenizer(), [""])
        self._pools: dict[int, Pool] = {}
        self._forward: Callable[..., Any] | None = None

    def refine(self) -> None:
        """As for every recipe, and without the steps that are all at the low resolution."""
        super().refine()
        self.low_steps = 0

    def build(self) -> nn.Module:
        """The untrained denoiser, every residual branch switched off as in Peebles & Xie (2023)."""
        model: nn.Module = start_at_identity(build_transformer())
        return model

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` times in (0, 1) before the shift, logit-normal as in Esser et al. (2024)."""
        return torch.sigmoid(torch.randn(count, generator=generator))

    def shifted_times(self, count: int, pixels: int, generator: torch.Generator) -> Tensor:
        """``count`` times in (0, 1) for pictures of ``pixels`` a side."""
        time, shift = self.times(count, generator), shift_of(pixels)
        return shift * time / (1 + (shift - 1) * time)

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean squared velocity error of one step."""
        low = step < self.low_steps or step % self.low_every == 0
        count = self.low_batch if low else self.full_batch
        pixels = self.call["height"] // (2 if low else 1)
        clean, tokens, pooled = self._pool(pixels).batch(count, generator)
        tokens, pooled = self._without_some(tokens, pooled, generator)
        padded = 0 if low else self._padding(step, generator)
        tokens = torch.cat([tokens, tokens.new_zeros(count, padded, _JOINT)], 1)
        time = self.shifted_times(count, pixels, generator)
        noise = torch.randn(clean.shape, generator=generator)
        mixed = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
        device = next(model.parameters()).device
        forward = model if padded else self._compiled(model)
        with mixed_precision(device):
            velocity = forward(
                hidden_states=mixed.to(device),
                encoder_hidden_states=tokens.to(device),
                pooled_projections=pooled.to(device),
                timestep=(time * 1000).to(device),
                return_dict=False,
            )[0]
        loss = (velocity.float() - (noise - clean).to(device)).square().mean()
        return loss, {"image_tokens": float(clean[0, 0].numel() // 4), "zero_tokens": float(padded)}

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """A sheet of samples at both resolutions, and what the pixel parser finds in them."""
        pipe = assemble(self.vae, self.tower, model, self.call["height"])
        return sample_sheet(pipe, self.call, folder / f"samples-{step:06d}.png")

    def _pool(self, pixels: int) -> Pool:
        if pixels not in self._pools:
            embed = partial(encode_text, self.tower, build_tokenizer())
            self._pools[pixels] = Pool.stored(self.cache, self.vae, embed, self.images, pixels)
        return self._pools[pixels]

    def _without_some(
        self, tokens: Tensor, pooled: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        # The empty caption is the unconditional branch of guidance.
        dropped = torch.rand(len(tokens), generator=generator) < self.dropped
        tokens = torch.where(dropped.view(-1, 1, 1), self.empty[0].cpu(), tokens)
        pooled = torch.where(dropped.view(-1, 1), self.empty[1].cpu(), pooled)
        return torch.cat([tokens, tokens], -1), torch.cat([pooled, pooled], -1)

    def _padding(self, step: int, generator: torch.Generator) -> int:
        draw = int(torch.randint(8, (1,), generator=generator))
        return {0: 256, 1: 64}.get(draw, 0) if step >= self.padded_from * self.schedule.steps else 0

    def _compiled(self, model: nn.Module) -> Callable[..., Any]:
        if self._forward is None:
            self._forward = torch.compile(model, dynamic=False) if self.compiled else model
        return self._forward


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToImage:
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder, load_text_tower

    vae, tower = load_autoencoder(root).to(device), load_text_tower(root).to(device)
    return TextToImage(vae, tower, compiled=compiled, cache=root / TextToImage.name)


def start_at_identity(model: Any) -> Any:
    """``model`` with Xavier weights, and zeros in every modulation and in the output layer."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    modulations = [block.norm1.linear for block in model.transformer_blocks]
    modulations += [block.norm1_context.linear for block in model.transformer_blocks]
    for layer in (*modulations, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
    return model


def assemble(vae: Any, tower: Any, transformer: Any, side: int) -> Any:
    """The stock StableDiffusion3Pipeline around the trained parts; one text tower serves in both CLIP slots."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = build_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift_of(side)),
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
        text_encoder_2=tower,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def settings(root: Path, side: int) -> dict[str, Any]:
    """What the ``hasten.json`` of a text-to-image miniature says besides the call.

    Args:
        root: folder of all runs.
        side: pixels of a side of its pictures.
    """
    from hasten_miniatures.runs import load_autoencoder

    return {
        "absent": ["text_encoder_3", "tokenizer_3"],
        "spectrum": latent_spectrum(load_autoencoder(root), side),
    }


def measure_images(
    pipe: Pipeline,
    call: Mapping[str, Any],
    prompts: int,
    seed: int,
    progress: Callable[[int], None],
    *,
    bars: Mapping[tuple[Split, bool], float],
) -> list[Row]:
    """How much of what prompts ask for is in the pictures, by both judges; see ``evaluate``."""
    from hasten.pipelines.mini.scoring import AttributeScorer, PixelParser
    from hasten_miniatures.evaluate import evaluate

    scorers: dict[str, Any] = {"classifier": AttributeScorer(), "parser": PixelParser()}
    return evaluate(pipe, call, scorers, prompts, bars=bars, seed=seed, progress=progress)
