"""The tokenizer of ``mini/var``: eight scales of a quantised 8 x 8 latent for 64 px scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.pipelines.var.vq_model import MultiScaleVQModel
from hasten_miniatures.autoencoder import LATENT_CHANNELS
from hasten_miniatures.batches import scene_batch
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.scale_tokens import (
    PIXELS,
    SCHEDULE,
    autoencoder_state,
    decoding_error,
    show_round_trip,
)
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.training import Recipe

__all__ = [
    "CODES",
    "TokenizerTraining",
    "VarTokenizer",
    "build_tokenizer_model",
    "copy_autoencoder",
    "make_recipe",
]

CODES = 512


def build_tokenizer_model() -> MultiScaleVQModel:
    """An untrained tokenizer with the architecture of the miniature autoencoder; a token is 2 x 2 latent positions."""
    model: MultiScaleVQModel = MultiScaleVQModel(
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        codebook_size=CODES,
        norm_groups=8,
        attention=False,
        token_patch=2,
    )
    return model


@torch.no_grad()
def copy_autoencoder(source: Any, vae: MultiScaleVQModel) -> None:
    """Initialise ``vae`` with a trained AutoencoderKL of the same shape, with latents scaled to unit variance."""
    missing, unexpected = vae.load_state_dict(autoencoder_state(source), strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(("quant", "post_quant")) for name in missing), missing
    scale, shift = source.config.scaling_factor, source.config.shift_factor
    for layer, factor, offset in (
        (vae.quant_conv, scale, -shift * scale),
        (vae.post_quant_conv, 1 / scale, shift),
    ):
        nn.init.dirac_(layer.weight)
        layer.weight.mul_(factor)
        assert layer.bias is not None
        layer.bias.fill_(offset)


class TokenizerTraining(nn.Module):
    """The tokenizer and the recent usage of each code, which is part of the checkpoint."""

    usage: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.vae = build_tokenizer_model()
        self.register_buffer("usage", torch.zeros(CODES))


class VarTokenizer(Recipe):
    """Distance between latent and codes, averaged over the sums of the first k scales (VAR, algorithm 1), and later
    also the error of pixels and their slopes after decoding.

    Encoder and decoder start from the trained autoencoder. The encoder is not trained. In the first part of the run,
    codes that are rarely used are moved to latents of the batch. A refinement trains only the decoder, so that the
    codes keep their meaning for a trained transformer.

    Args:
        autoencoder: the trained AutoencoderKL.
    """

    name = "var-tokenizer"
    schedule = Schedule(steps=1250, learning_rate=2e-3, decay_from=0.6, average=0.99)
    batch = 16
    codes_only = 1000
    """Number of steps without decoding."""
    revive_every, revive_until = 25, 600
    decoder_alone = False

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder

    def refine(self) -> None:
        """Train only the decoder, with a lower learning rate."""
        super().refine()
        self.decoder_alone = True

    def build(self) -> nn.Module:
        """The model before training."""
        model = TokenizerTraining()
        copy_autoencoder(self.autoencoder, model.vae)
        nn.init.normal_(model.vae.quantize.embedding.weight, std=0.5)
        model.vae.encoder.requires_grad_(False)
        model.vae.quant_conv.requires_grad_(False)
        model.vae.quantize.requires_grad_(not self.decoder_alone)
        return model

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch and the share of codes in use; also the PSNR in dB if pictures are decoded."""
        assert isinstance(model, TokenizerTraining)
        vae, device = model.vae, next(model.parameters()).device
        images = scene_batch(self.batch, PIXELS, generator)[1].to(device)
        with mixed_precision(device):
            with torch.no_grad():
                latent = vae.encode(images)
            coded, distance, rests = self._quantise(model, latent)
        if self.decoder_alone:
            return decoding_error(vae, coded, images)
        if step % self.revive_every == 0 and step <= self.revive_until:
            self._revive(model, rests, generator)
        figures = {
            "distance": float(distance.detach()),
            "codes_used": float((model.usage > 0.05).float().mean()),
        }
        if step < self.codes_only:
            return distance, figures
        error, quality = decoding_error(vae, coded.detach(), images)
        return error + distance, figures | quality

    def _quantise(self, model: TokenizerTraining, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The quantised latent, its mean distance, and the residuals of all tokens (rows, C)."""
        book = model.vae.quantize
        total, distance, rests = torch.zeros_like(latent), latent.new_zeros(()), []
        counts = torch.zeros_like(model.usage)
        for scale, grid in enumerate(SCHEDULE):
            rest = F.interpolate(latent - total.detach(), size=grid, mode="area")
            indices = book.nearest(rest)
            total = total + book.contribution(book.codes(indices, grid), scale, len(SCHEDULE), SCHEDULE[-1])
            distance = distance + (total - latent).square().mean()
            counts += torch.bincount(indices.flatten(), minlength=CODES)
            rests.append(rest.flatten(2).transpose(1, 2).flatten(0, 1))
        with torch.no_grad():
            model.usage.lerp_(counts.clamp(max=1.0), 0.03)
        return total, distance / len(SCHEDULE), torch.cat(rests)

    @torch.no_grad()
    def _revive(self, model: TokenizerTraining, rests: Tensor, generator: torch.Generator) -> None:
        dead = (model.usage < 0.05).nonzero()[:, 0]
        rows = torch.randint(len(rests), (len(dead),), generator=generator)
        model.vae.quantize.embedding.weight[dead] = rests[rows.to(rests.device)]
        model.usage[dead] = 0.3

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write scenes above their reconstructions; returns figures of these."""
        assert isinstance(model, TokenizerTraining)
        return show_round_trip(model.vae, folder, step)


def make_recipe(root: Path, *, device: str, compiled: bool) -> VarTokenizer:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder

    return VarTokenizer(load_autoencoder(root).to(device))
