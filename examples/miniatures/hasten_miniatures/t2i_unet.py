"""``mini/t2i-unet``: a StableDiffusionPipeline with a small U-Net, trained on 64 px scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import Pipeline
from hasten.pipelines.mini.scenes import Split
from hasten_miniatures.contrastive import WIDTH
from hasten_miniatures.evaluate import Row
from hasten_miniatures.product import Product, usage
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.sheets import sample_sheet
from hasten_miniatures.t2i_dit import Pool
from hasten_miniatures.text import build_tokenizer, tokenize
from hasten_miniatures.training import Recipe

__all__ = ["CALL", "PRODUCT", "TextToImageUNet", "assemble", "build_scheduler", "build_unet", "make_recipe"]

SIDE = 64
"""Pixels of a side."""
CALL: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 1.5, "height": SIDE, "width": SIDE}
"""Recommended arguments of a call."""
BARS: dict[tuple[Split, bool], float] = {("train", True): 0.88}
"""(split, full resolution) -> required share of right attributes."""


def build_unet() -> Any:
    """An untrained UNet2DConditionModel of about 1.7 M parameters: three levels, the outer one without attention."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 4),  # heads per level, despite the name
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
    )


def build_scheduler() -> Any:
    """DDIM on Stable Diffusion's noise, rescaled so that the last level is pure noise (Lin et al. 2024)."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def build_text_encoder(tower: Any) -> Any:
    """The tower as a ``CLIPTextModel``, whose first output is the token states that the pipeline reads."""
    from transformers import CLIPTextModel

    model = CLIPTextModel(tower.config)
    prefixed = any(name.startswith("text_model.") for name in model.state_dict())
    drop = "" if prefixed else "text_model."
    states = {
        name.removeprefix(drop): value
        for name, value in tower.state_dict().items()
        if name.startswith("text_model.")
    }
    model.load_state_dict(states)
    return model.to(next(tower.parameters()).device).eval().requires_grad_(False)


@torch.no_grad()
def encode_text(encoder: Any, tokenizer: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token states (B, 24, 96) and pooled states (B, 96), as the pipeline's text encoder returns them."""
    out = encoder(tokenize(tokenizer, captions).input_ids.to(next(encoder.parameters()).device))
    return out.last_hidden_state.float(), out.pooler_output.float()


class TextToImageUNet(Recipe):
    """Mean squared error of the velocity at uniform timesteps.

    Args:
        vae: the trained autoencoder.
        encoder: the text encoder of the pipeline.
        images: scenes in the pool.
        cache: folder that keeps the encoded pool for a resumed run.
    """

    name = "t2i-unet"
    schedule = Schedule(steps=3000, learning_rate=1.2e-3, warmup=150, decay_from=0.5, average=0.997)
    batch = 32

    def __init__(self, vae: Any, encoder: Any, *, images: int = 16_000, cache: Path | None = None) -> None:
        self.vae, self.encoder, self.images, self.cache = vae, encoder, images, cache
        self.empty = encode_text(encoder, build_tokenizer(), [""])[0].cpu()
        self.shift = vae.config.shift_factor * vae.config.scaling_factor
        self.scheduler = build_scheduler()
        self._pool: Pool | None = None

    def build(self) -> nn.Module:
        """The untrained denoiser, with all residual branches at zero."""
        model: nn.Module = build_unet()
        for name, module in model.named_modules():
            if name.endswith(("conv2", "proj_out", "conv_out")):
                nn.init.zeros_(module.weight)
        return model

    def loss(
        self,
        model: nn.Module,
        step: int,  # noqa: ARG002
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch."""
        clean, tokens = self.draw(self.batch, generator)
        time = torch.randint(self.scheduler.config.num_train_timesteps, (self.batch,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        mixed = self.scheduler.add_noise(clean, noise, time)
        target = self.scheduler.get_velocity(clean, noise, time)
        device = next(model.parameters()).device
        velocity = model(mixed.to(device), time.to(device), tokens.to(device), return_dict=False)[0]
        return (velocity - target.to(device)).square().mean(), {}

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (count, 4, 16, 16) as the denoiser sees them, and token states; one caption in ten is empty."""
        if self._pool is None:
            embed = partial(encode_text, self.encoder, build_tokenizer())
            self._pool = Pool.stored(self.cache, self.vae, embed, self.images, SIDE)
        clean, tokens, _ = self._pool.batch(count, generator)
        dropped = torch.rand(count, generator=generator) < 0.1
        # StableDiffusionPipeline has a scale of latents but no shift, so the shift of the pool is undone.
        return clean + self.shift, torch.where(dropped.view(-1, 1, 1), self.empty, tokens)

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write a sheet of samples; returns what the pixel parser finds in them."""
        pipe = assemble(self.vae, self.encoder, model)
        return sample_sheet(pipe, CALL, folder / f"samples-{step:06d}.png", 32, (SIDE,))


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToImageUNet:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder, load_text_tower

    encoder = build_text_encoder(load_text_tower(root)).to(device)
    return TextToImageUNet(load_autoencoder(root).to(device), encoder, cache=root / TextToImageUNet.name)


def assemble(vae: Any, encoder: Any, unet: Any) -> Any:
    """The stock StableDiffusionPipeline around the trained parts."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _assemble_trained(root: Path) -> Any:
    from hasten_miniatures.runs import load_autoencoder, load_text_tower, load_trained

    denoiser = load_trained(TextToImageUNet.name, root, build_unet())
    return assemble(load_autoencoder(root), build_text_encoder(load_text_tower(root)), denoiser)


def _measure(
    pipe: Pipeline, call: Mapping[str, Any], prompts: int, seed: int, progress: Callable[[int], None]
) -> list[Row]:
    from hasten.pipelines.mini.scoring import AttributeScorer, PixelParser
    from hasten_miniatures.evaluate import evaluate

    scorers: dict[str, Any] = {"classifier": AttributeScorer(), "parser": PixelParser()}
    return evaluate(pipe, call, scorers, prompts, bars=BARS, seed=seed, progress=progress)


_TEXT = f"""
A stock `StableDiffusionPipeline` for captioned scenes of one to three simple objects at 64 px, with a small
`UNet2DConditionModel` of three levels (v-prediction, zero terminal SNR). Its text encoder is the text tower of the
bundled contrastive model.

{usage("t2i-unet")}

Figures of miniatures show trends and are not comparable with published ones.
"""

PRODUCT = Product(
    text=_TEXT,
    runs=("autoencoder", "text-image", TextToImageUNet.name),
    call=CALL,
    assemble=_assemble_trained,
    settings=lambda _: {"absent": ["safety_checker", "feature_extractor"]},
    measure=_measure,
    samples=2,
)
