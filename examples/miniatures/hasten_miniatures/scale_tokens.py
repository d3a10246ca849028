"""Shared parts of the tokenizers of both next-scale miniatures: scales, initial weights, previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from hasten.pipelines.mini.scoring import PixelParser
from hasten.pipelines.var.tokenizer import ScaleTokenizer
from hasten.schedules.scales import square_schedule
from hasten_miniatures.autoencoder import LATENT_CHANNELS, picture_error, psnr
from hasten_miniatures.batches import scene_batch
from hasten_miniatures.grids import save_grid
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.training import step_generator

__all__ = ["PIXELS", "SCHEDULE", "autoencoder_state", "decoding_error", "show_round_trip"]

PIXELS = 64
SCHEDULE = square_schedule(range(1, 9))
"""Eight scales, 204 tokens."""


def autoencoder_state(source: Any) -> dict[str, Tensor]:
    """Weights of an AutoencoderKL, with the names of encoder and decoder of a scale tokenizer."""
    state = {}
    for key, value in source.state_dict().items():
        for ours in _our_names(key, len(source.config.block_out_channels)):
            state[ours] = value[:LATENT_CHANNELS] if ours.startswith("encoder.conv_out") else value
    return state


def _our_names(key: str, levels: int) -> list[str]:
    """Names of a weight of an AutoencoderKL in a scale tokenizer."""
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    parts = key.split(".")
    if parts[1] == "mid_block":
        return [".".join([parts[0], "mid", f"block_{int(parts[3]) + 1}", *parts[4:]])]
    if parts[1] in ("down_blocks", "up_blocks"):
        up = parts[1] == "up_blocks"
        level = levels - 1 - int(parts[2]) if up else int(parts[2])
        place = [parts[0], "up" if up else "down", str(level)]
        if parts[3] == "resnets":
            return [".".join([*place, "block", *parts[4:]])]
        return [".".join([*place, "upsample" if up else "downsample", *parts[5:]])]
    return [key]


def decoding_error(vae: ScaleTokenizer, latent: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Error of the pictures (B, 3, H, W) decoded from a latent, and their PSNR in dB."""
    with mixed_precision(images.device):
        decoded = vae.decode_latent(latent).float()
    return picture_error(decoded, images), {"psnr": float(psnr(decoded.detach(), images).mean())}


@torch.no_grad()
def show_round_trip(vae: ScaleTokenizer, folder: Path, step: int, count: int = 64) -> dict[str, float]:
    """Write scenes above their reconstructions; returns PSNR in dB and the share of attributes the parser finds."""
    scenes, images = scene_batch(count, PIXELS, step_generator(1, step))
    decoded = vae(images.to(vae.device), SCHEDULE).cpu()
    save_grid(torch.cat([images[:16], decoded[:16]]), folder / f"round-trip-{step:06d}.png", columns=16)
    pictures = VaeImageProcessor().postprocess(decoded.clamp(-1, 1))
    found = PixelParser().score(pictures, [scene.caption() for scene in scenes])
    return {"psnr_64": float(psnr(decoded, images).mean()), "parser": found.mean}
