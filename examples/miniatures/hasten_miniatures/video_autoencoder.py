"""The video autoencoder of the miniatures: eight channels, a quarter of the side, half the frames after the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten_miniatures.autoencoder import psnr
from hasten_miniatures.grids import save_grid
from hasten_miniatures.moving import render_videos, sample_moving_scene
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.training import Recipe, step_generator

__all__ = [
    "LATENT_CHANNELS",
    "VideoAutoencoder",
    "build_video_autoencoder",
    "calibrate",
    "encode",
    "make_recipe",
    "start_frame_by_frame",
    "video_psnr",
]

LATENT_CHANNELS = 8
PATCH = 2
SIDE = 64


def build_video_autoencoder() -> Any:
    """An untrained AutoencoderKLWan: blocks of 2 x 2 pixels, then one level; 1 + 2 n frames give 1 + n latents."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=24,
        decoder_base_dim=36,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        patch_size=PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )


class VideoAutoencoder(Recipe):
    """Absolute and squared error of pixels, absolute error of their slopes, and a small KL term.

    Single frames, which are cheap, come first, then clips of five. Three quarters of the steps use 32 px crops around
    the object, the others whole 64 px frames with their borders.
    """

    name = "video-autoencoder"
    schedule = Schedule(steps=6000, learning_rate=3e-3, warmup=50, decay_from=0.4, average=0.99)
    singles = 0.88
    """Share of the run on single frames."""
    frames = 5
    crops, wholes = 8, 2
    kl_weight = 1e-6
    decoder_alone = False

    def refine(self) -> None:
        """Train only the decoder, so that the latents stay valid for trained denoisers."""
        super().refine()
        self.schedule = replace(self.schedule, steps=1500)
        self.decoder_alone = True

    def inherit(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load the encoder, which defines the latents, and the weights of the decoder that have the same shape."""
        own = model.state_dict()
        fitting = {key: value for key, value in weights.items() if own[key].shape == value.shape}
        model.load_state_dict(own | fitting)

    def build(self) -> nn.Module:
        """The untrained model, which ignores earlier frames, so that training on single frames applies to clips."""
        model: nn.Module = build_video_autoencoder()
        return start_frame_by_frame(model)

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction loss of one batch and its PSNR in dB."""
        device = next(model.parameters()).device
        videos = self._clips(step, generator).to(device)
        with mixed_precision(device):
            with torch.set_grad_enabled(not self.decoder_alone):
                posterior = model.encode(videos).latent_dist  # type: ignore[operator]
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            latents = posterior.mean + posterior.std * noise
            decoded = _decode_unclamped(model, latents).float()
        error = decoded - videos
        slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = (
            error.abs().mean() + 0.5 * slopes + error.square().mean() + self.kl_weight * posterior.kl().mean()
        )
        return loss, {"psnr": float(video_psnr(decoded.detach(), videos).mean())}

    @torch.no_grad()
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write every second frame of scenes above their reconstructions; returns their PSNR in dB."""
        videos = _batch(4, 17, step_generator(1, step))[0]
        decoded = model.decode(model.encode(videos).latent_dist.mode()).sample  # type: ignore[operator]
        shown = torch.stack([videos, decoded], 1)[:, :, :, ::2].transpose(2, 3).flatten(0, 2)
        save_grid(shown, folder / f"round-trip-{step:06d}.png", columns=9)
        return {"psnr_64": float(video_psnr(decoded, videos).mean())}

    def _clips(self, step: int, generator: torch.Generator) -> Tensor:
        frames = 1 if step < self.singles * self.schedule.steps else self.frames
        if step % 4 == 0:
            return _batch(self.wholes, frames, generator)[0]
        videos, centres = _batch(self.crops, frames, generator)
        return _crops(videos, centres, generator)


def make_recipe(root: Path, *, device: str, compiled: bool) -> VideoAutoencoder:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    return VideoAutoencoder()


def start_frame_by_frame(model: Any) -> nn.Module:
    """Initialise ``model`` with weights of unit gain, zero weights for earlier frames, and small latent noise.

    The two temporal resampling layers start as the mean of two frames and as two copies of a frame.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
            with torch.no_grad():
                module.weight[:, :, 2] *= 3**0.5
                module.weight[:, :, :2] = 0
        if name.endswith("time_conv"):
            with torch.no_grad():
                copies = module.out_channels // module.in_channels
                same = torch.eye(module.in_channels).repeat(copies, 1)[..., None, None]
                module.weight.zero_()
                for tap in (1, 2) if copies == 1 else (2,):
                    module.weight[:, :, tap] = same / (3 - copies)
    with torch.no_grad():
        model.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
        model.quant_conv.bias[LATENT_CHANNELS:] = -6
    result: nn.Module = model
    return result


def video_psnr(videos: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each frame of (B, 3, F, H, W) in [-1, 1]; (B F,)."""
    return psnr(videos.transpose(1, 2).flatten(0, 1), reference.transpose(1, 2).flatten(0, 1))


@torch.no_grad()
def calibrate(model: Any, seed: int = 0, scenes: int = 48) -> None:
    """Set mean and standard deviation of each latent channel, which the pipeline undoes."""
    latents = model.encode(_batch(scenes, 17, step_generator(seed, -1))[0]).latent_dist.mode()
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


@torch.no_grad()
def encode(model: Any, videos: Tensor) -> Tensor:
    """Normalised latents (B, 8, 1 + (F - 1) / 2, H / 4, W / 4) of (B, 3, F, H, W) in [-1, 1]; F is 1 more than 4 n."""
    latents: Tensor = model.encode(videos).latent_dist.mode()
    mean, std = (
        torch.tensor(model.config[name], device=latents.device).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return (latents - mean) / std


def _decode_unclamped(model: Any, latents: Tensor) -> Tensor:
    """``model.decode`` without its clamp, since a clamped pixel has no gradient."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    model.clear_cache()
    hidden = model.post_quant_conv(latents)
    chunks = []
    for frame in range(hidden.shape[2]):
        model._conv_idx = [0]
        chunk = hidden[:, :, frame : frame + 1]
        chunks.append(
            model.decoder(chunk, feat_cache=model._feat_map, feat_idx=model._conv_idx, first_chunk=frame == 0)
        )
    model.clear_cache()
    decoded: Tensor = unpatchify(torch.cat(chunks, 2), patch_size=PATCH)
    return decoded


def _batch(count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training videos (count, 3, frames, 64, 64) and places of the object in the middle frame, (count, 2), y first."""
    from hasten_miniatures.moving import trajectory

    seed = int(torch.randint(2**40, (1,), generator=generator))
    scenes = [sample_moving_scene(seed, index) for index in range(count)]
    middles = [trajectory(scene, seed, i, frames)[0][frames // 2] for i, scene in enumerate(scenes)]
    centres = torch.tensor([[item.y, item.x] for item in middles])
    return render_videos(scenes, seed, 0, SIDE, frames), centres


def _crops(videos: Tensor, centres: Tensor, generator: torch.Generator) -> Tensor:
    """32 px windows around the objects, shifted by up to 12 px; scenes wrap around, so every window exists."""
    half = SIDE // 4
    offsets = torch.randint(-12, 13, centres.shape, generator=generator)
    corners = (centres * SIDE).round().long() + offsets - half
    rolled = [video.roll((-int(top), -int(left)), (-2, -1)) for video, (top, left) in zip(videos, corners)]
    return torch.stack(rolled)[..., : 2 * half, : 2 * half]
