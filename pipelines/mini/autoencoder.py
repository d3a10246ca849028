"""The image autoencoder of the latent miniatures: 4 latent channels at a quarter of the image's side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.pipelines.mini.batches import scene_batch
from hasten.pipelines.mini.grids import save_grid
from hasten.pipelines.mini.training import Recipe, Schedule, step_generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["LATENT_CHANNELS", "Autoencoder", "build_autoencoder", "calibrate", "psnr"]

LATENT_CHANNELS = 4
CROP = 64


def build_autoencoder() -> AutoencoderKL:
    """An untrained AutoencoderKL of 0.77 M parameters, fully convolutional, so that any size works."""
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
    """Absolute and squared error of pixels, absolute error of their differences, and a small KL term.

    Half of the pictures are 64 px scenes, half are random 64 px crops of 128 px scenes.
    """

    name = "autoencoder"
    schedule = Schedule(steps=1400, learning_rate=1e-3, decay_from=0.5, average=0.99)
    batch = 12
    kl_weight = 4e-4

    def build(self) -> nn.Module:
        """The untrained model."""
        model: nn.Module = build_autoencoder().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def loss(self, model: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction loss of one batch and its PSNR."""
        _, images = scene_batch(self.batch, CROP if step % 2 else 2 * CROP, generator)
        images = _crop(images, generator).to(next(model.parameters()).device)
        with torch.autocast(images.device.type, torch.bfloat16):
            posterior = model.encode(images).latent_dist  # type: ignore[operator]
            noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
            decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()  # type: ignore[operator]
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        error = decoded - images
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (-1, -2)) / 2
        loss = error.abs().mean() + edges + error.square().mean() + self.kl_weight * kl
        return loss, {"psnr": float(psnr(decoded.detach(), images).mean())}

    @torch.no_grad()
    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """Scenes above their round trip."""
        _, images = scene_batch(8, 128, step_generator(1, step))
        decoded = model.decode(model.encode(images).latent_dist.mode()).sample  # type: ignore[operator]
        save_grid(torch.cat([images, decoded]), folder / f"round-trip-{step:06d}.png", columns=8)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture of (B, 3, H, W) in [-1, 1]."""
    return -10 * ((images.clamp(-1, 1) - reference) / 2).square().mean((1, 2, 3)).log10()


@torch.no_grad()
def calibrate(model: AutoencoderKL, seed: int = 0, scenes: int = 128) -> None:
    """Set shift and scale so that the latents of 128 px scenes have mean 0 and standard deviation 1."""
    generator = step_generator(seed, -1)
    latents = torch.cat(
        [model.encode(scene_batch(16, 128, generator)[1]).latent_dist.mode() for _ in range(scenes // 16)]
    )
    model.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    spare = images.shape[-1] - CROP
    top, left = (int(torch.randint(spare + 1, (1,), generator=generator)) for _ in range(2))
    return images[:, :, top : top + CROP, left : left + CROP].contiguous(memory_format=torch.channels_last)
