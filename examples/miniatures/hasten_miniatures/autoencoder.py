"""The image autoencoder of the latent miniatures: four latent channels at a quarter of the side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten_miniatures.batches import scene_batch
from hasten_miniatures.grids import save_grid
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.training import Recipe, step_generator

__all__ = [
    "LATENT_CHANNELS",
    "Autoencoder",
    "build_autoencoder",
    "calibrate",
    "encode",
    "latent_spectrum",
    "make_recipe",
    "picture_error",
    "psnr",
]

LATENT_CHANNELS = 4
CROP = 64


def build_autoencoder() -> Any:
    """An untrained AutoencoderKL of 0.77 M parameters, fully convolutional, for any size."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=128,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


class Autoencoder(Recipe):
    """Absolute and squared error of pixels, absolute error of their slopes (for sharp edges), and a small KL term.

    Half of the pictures are 64 px scenes, half are random 64 px crops of 128 px scenes.
    """

    name = "autoencoder"
    schedule = Schedule(steps=2000, learning_rate=1e-3, decay_from=0.5, average=0.995)
    batch = 12
    kl_weight = 1e-6

    def build(self) -> nn.Module:
        """The untrained model."""
        model: nn.Module = build_autoencoder().to(memory_format=torch.channels_last)
        return model

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction loss of one batch and its PSNR in dB."""
        device = next(model.parameters()).device
        images = _crops(self.batch, step, generator).to(device, memory_format=torch.channels_last)
        with mixed_precision(device):
            posterior = model.encode(images).latent_dist  # type: ignore[operator]
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()  # type: ignore[operator]
        loss = picture_error(decoded, images) + self.kl_weight * posterior.kl().mean()
        return loss, {"psnr": float(psnr(decoded.detach(), images).mean())}

    @torch.no_grad()
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write scenes above their reconstructions; returns figures of these."""
        _, images = scene_batch(8, 128, step_generator(1, step))
        decoded = model.decode(model.encode(images).latent_dist.mode()).sample  # type: ignore[operator]
        save_grid(torch.cat([images, decoded]), folder / f"round-trip-{step:06d}.png", columns=8)
        return {"psnr_128": float(psnr(decoded, images).mean())}


def make_recipe(root: Path, *, device: str, compiled: bool) -> Autoencoder:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    return Autoencoder()


def picture_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Absolute and squared error of pixels and absolute error of their slopes, of (B, 3, H, W); a mean."""
    error = decoded - images
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * slopes + error.square().mean()


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture of (B, 3, H, W) in [-1, 1]."""
    return -10 * ((images.clamp(-1, 1) - reference) / 2).square().mean((1, 2, 3)).log10()


@torch.no_grad()
def calibrate(model: Any, seed: int = 0, scenes: int = 128) -> None:
    """Set shift and scale such that the latents of 128 px scenes have mean 0 and standard deviation 1."""
    generator = step_generator(seed, -1)
    latents = torch.cat(
        [model.encode(scene_batch(16, 128, generator)[1]).latent_dist.mode() for _ in range(scenes // 16)]
    )
    model.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))


@torch.no_grad()
def encode(model: Any, images: Tensor) -> Tensor:
    """Normalised latents (B, 4, H / 4, W / 4), the input of the denoiser, of (B, 3, H, W) in [-1, 1]."""
    latents: Tensor = model.encode(images).latent_dist.mode()
    normalised: Tensor = (latents - model.config.shift_factor) * model.config.scaling_factor
    return normalised


@torch.no_grad()
def latent_spectrum(vae: Any, side: int, scenes: int = 256) -> dict[str, float]:
    """``A`` and ``beta`` of the normalised latents of scenes of ``side`` pixels."""
    from hasten.schedules.spectrum import fit_spectrum

    generator = step_generator(2, 0)
    latents = [encode(vae, scene_batch(32, side, generator)[1]) for _ in range(scenes // 32)]
    law = fit_spectrum(torch.cat(latents))
    return {"A": law.amplitude, "beta": law.exponent, "images": scenes, "side": side}


def _crops(count: int, step: int, generator: torch.Generator) -> Tensor:
    if step % 2:
        return scene_batch(count, CROP, generator)[1]
    images = scene_batch(count, 2 * CROP, generator)[1]
    top, left = torch.randint(0, CROP, (2,), generator=generator).tolist()
    return images[..., top : top + CROP, left : left + CROP]
