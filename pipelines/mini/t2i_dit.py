"""``mini/t2i-dit``: a StableDiffusion3Pipeline trained here from 64 tokens upwards to 256."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hasten.pipelines.mini.autoencoder import encode
from hasten.pipelines.mini.contrastive import WIDTH
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import sample_scene
from hasten.pipelines.mini.text import MAX_TOKENS, build_tokenizer
from hasten.pipelines.mini.training import Recipe, Schedule

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

__all__ = ["SHIFT", "LatentPool", "TextToImage", "assemble", "build_transformer", "encode_text"]

SHIFT = 2.0
"""Static timestep shift of the scheduler at full resolution; half of it at half the side (same SNR)."""
_POOL_SEED = 77
_JOINT = 2 * WIDTH


def build_transformer() -> SD3Transformer2DModel:
    """An untrained SD3Transformer2DModel of about 4.1 M parameters: 7 joint blocks of width 128."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=7,
        attention_head_dim=64,
        num_attention_heads=2,
        caption_projection_dim=128,
        joint_attention_dim=_JOINT,
        pooled_projection_dim=_JOINT,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )


@torch.no_grad()
def encode_text(tower: Any, tokenizer: Any, captions: list[str], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Prompt embeddings as StableDiffusion3Pipeline makes them when both CLIP slots hold ``tower``.

    Returns:
        token embeddings (B, 24, 192) and pooled embeddings (B, 192), float32.
    """
    ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    out = tower(ids.input_ids.to(device), output_hidden_states=True)
    tokens, pooled = out.hidden_states[-2].float(), out.text_embeds.float()
    return torch.cat([tokens, tokens], -1), torch.cat([pooled, pooled], -1)


@dataclass(frozen=True)
class LatentPool:
    """Latents and captions of the first ``len(captions)`` training scenes at one resolution, float16."""

    latents: Tensor
    captions: list[str]

    @classmethod
    def make(cls, vae: Any, count: int, pixels: int, progress: Callable[[Any], Any] = iter) -> LatentPool:
        """Render and encode ``count`` scenes of ``pixels`` squared."""
        device = next(vae.parameters()).device
        latents, captions, chunk = [], [], 64
        for first in progress(range(0, count, chunk)):
            scenes = [sample_scene(_POOL_SEED, i) for i in range(first, min(first + chunk, count))]
            images = render_scenes(scenes, _POOL_SEED, first, pixels).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                latents.append(encode(vae, images).to("cpu", torch.float16))
            captions += [scene.caption() for scene in scenes]
        return cls(torch.cat(latents), captions)

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """``count`` random entries: float32 latents and captions."""
        rows = torch.randint(len(self.captions), (count,), generator=generator)
        return self.latents[rows].float(), [self.captions[row] for row in rows.tolist()]


class TextToImage(Recipe):
    """Rectified flow on latents, first at 64 tokens, then mostly at 256 with some 64 kept in.

    Args:
        vae: the trained autoencoder, its scale and shift set.
        tower: the trained text tower (``CLIPTextModelWithProjection``).
        images: scenes in the pool at each resolution.
        compiled: run the denoiser through ``torch.compile`` (half again as fast on a CPU, needs a C++ compiler).
    """

    name = "t2i-dit"
    schedule = Schedule(steps=7000, learning_rate=1.2e-3, warmup=200, decay_from=0.6, average=0.999)
    low_steps = 2400
    """Steps at 64 tokens before the first one at 256."""
    low_every = 8
    """In the rest, every so many steps is at 64 tokens."""
    low_batch, full_batch = 64, 32
    padded_from = 0.85
    """From this share of the run on, one step in four appends the zero tokens of a default pipeline call."""

    def __init__(self, vae: Any, tower: Any, *, images: int = 24_000, compiled: bool = False) -> None:
        from tqdm import tqdm

        self.tower, self.tokenizer = tower, build_tokenizer()
        self.vae = vae
        self.low = LatentPool.make(vae, images, 64, lambda r: tqdm(r, desc="latents 64 px", mininterval=5))
        self.full = LatentPool.make(vae, images, 128, lambda r: tqdm(r, desc="latents 128 px", mininterval=5))
        self.empty = encode_text(tower, self.tokenizer, [""], self._device())
        self.compiled = compiled
        self._forward: Callable[..., Any] | None = None

    def build(self) -> nn.Module:
        """The untrained denoiser."""
        return build_transformer()

    def loss(self, model: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared velocity error of one step."""
        low = step < self.low_steps or step % self.low_every == 0
        pool, count, shift = (
            (self.low, self.low_batch, SHIFT / 2) if low else (self.full, self.full_batch, SHIFT)
        )
        device = self._device()
        clean, captions = pool.batch(count, generator)
        tokens, pooled = self._conditions(captions, generator)
        padded = 0 if low else self._padding(step, generator)
        tokens = torch.cat([tokens, tokens.new_zeros(count, padded, _JOINT)], 1)
        time = torch.sigmoid(torch.randn(count, generator=generator))
        time = shift * time / (1 + (shift - 1) * time)
        noise = torch.randn(clean.shape, generator=generator)
        mixed = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
        forward = model if padded else self._compiled(model)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            velocity = forward(
                hidden_states=mixed.to(device),
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                timestep=(time * 1000).to(device),
                return_dict=False,
            )[0]
        loss = (velocity.float() - (noise - clean).to(device)).square().mean()
        return loss, {"tokens": float(clean.shape[-1] ** 2 / 4)}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """A sheet of samples at both resolutions for held-out captions."""
        from hasten.pipelines.mini.sheets import sample_sheet

        pipe = assemble(self.vae, self.tower, model)
        sample_sheet(pipe, folder / f"samples-{step:06d}.png")

    def _device(self) -> str:
        return str(next(self.tower.parameters()).device)

    def _conditions(self, captions: list[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens, pooled = encode_text(self.tower, self.tokenizer, captions, self._device())
        dropped = torch.rand(len(captions), generator=generator).to(tokens.device) < 0.1
        tokens = torch.where(dropped.view(-1, 1, 1), self.empty[0], tokens)
        return tokens, torch.where(dropped.view(-1, 1), self.empty[1], pooled)

    def _padding(self, step: int, generator: torch.Generator) -> int:
        draw = int(torch.randint(8, (1,), generator=generator))
        return {0: 256, 1: 64}.get(draw, 0) if step >= self.padded_from * self.schedule.steps else 0

    def _compiled(self, model: nn.Module) -> Callable[..., Any]:
        if self._forward is None:
            self._forward = torch.compile(model, dynamic=False) if self.compiled else model
        return self._forward


def assemble(vae: Any, tower: Any, transformer: Any) -> StableDiffusion3Pipeline:
    """The stock pipeline around the trained parts; one text tower serves in both CLIP slots."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = build_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
        text_encoder_2=tower,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
