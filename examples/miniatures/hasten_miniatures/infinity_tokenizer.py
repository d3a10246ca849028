"""The tokenizer of ``mini/infinity``: eight scales of bits for 64 px scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.pipelines.infinity.bsq_model import BSQAutoencoder
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

__all__ = ["InfinityTokenizer", "build_bitwise_tokenizer", "make_recipe"]

_BITS = 8


def build_bitwise_tokenizer() -> BSQAutoencoder:
    """An untrained tokenizer with the architecture of the miniature autoencoder; a token is 2 x 2 positions of 8 bits.

    Its latent has unit length, unlike that of the published tokenizers, since the loss compares it with the bits.
    """
    model: BSQAutoencoder = BSQAutoencoder(
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        bits=_BITS,
        token_patch=2,
        norm_groups=8,
        unit_latent=True,
    )
    return model


@torch.no_grad()
def copy_autoencoder(source: Any, vae: BSQAutoencoder) -> None:
    """Initialise ``vae`` with a trained AutoencoderKL, except for the layers at its latent, which differ in shape."""
    fresh = ("encoder.conv_out.", "decoder.conv_in.")
    state = {key: value for key, value in autoencoder_state(source).items() if not key.startswith(fresh)}
    missing, unexpected = vae.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(fresh) for name in missing), missing


class InfinityTokenizer(Recipe):
    """Error of pixels and their slopes after quantisation and decoding, plus the distance between latent and bits.

    Gradients pass straight through the quantiser. Only the last layer of the encoder is trained. Some bits are flipped,
    so that the decoder tolerates wrong ones. A refinement trains only the decoder, so that the bits keep their meaning
    for a trained transformer.

    Args:
        autoencoder: the trained AutoencoderKL.
    """

    name = "infinity-tokenizer"
    schedule = Schedule(steps=600, learning_rate=2e-3, decay_from=0.4, average=0.99)
    batch = 16
    commitment = 0.5
    most_flipped = 0.04
    """Largest share of flipped bits; the share of a picture is drawn uniformly from zero to this."""

    decoder_alone = False

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder

    def refine(self) -> None:
        """Train only the decoder, with a lower learning rate."""
        super().refine()
        self.decoder_alone = True

    def build(self) -> nn.Module:
        """The model before training."""
        model = build_bitwise_tokenizer()
        copy_autoencoder(self.autoencoder, model)
        model.encoder.requires_grad_(False)
        model.encoder.conv_out.requires_grad_(not self.decoder_alone)
        return model

    def loss(
        self,
        model: nn.Module,
        step: int,  # noqa: ARG002
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch, and the PSNR in dB."""
        assert isinstance(model, BSQAutoencoder)
        device = next(model.parameters()).device
        images = scene_batch(self.batch, PIXELS, generator)[1].to(device)
        with mixed_precision(device):
            latent = model.encode(images)
        coded = self._quantise(model, latent.detach(), generator)
        error, figures = decoding_error(model, latent + (coded - latent).detach(), images)
        distance = (latent - coded).square().sum(1).mean()
        return error + self.commitment * distance, figures | {"distance": float(distance.detach())}

    @torch.no_grad()
    def _quantise(self, model: BSQAutoencoder, latent: Tensor, generator: torch.Generator) -> Tensor:
        """The sum of all scales, with some flipped bits in every picture."""
        total = torch.zeros_like(latent)
        share = self.most_flipped * torch.rand((len(latent), 1), generator=generator)
        for scale, grid in enumerate(SCHEDULE):
            bits = model.choose(latent - total, grid)
            flipped = (torch.rand(bits.shape, generator=generator) < share).to(bits.device)
            total = model.add_scale(total, bits ^ flipped, scale, SCHEDULE)
        return total

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write scenes above their reconstructions; returns figures of these."""
        assert isinstance(model, BSQAutoencoder)
        return show_round_trip(model, folder, step)


def make_recipe(root: Path, *, device: str, compiled: bool) -> InfinityTokenizer:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder

    return InfinityTokenizer(load_autoencoder(root).to(device))
