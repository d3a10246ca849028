"""The tokenizer of Infinity: every latent channel is one bit, quantised scale by scale.

Sources: Infinity (Han et al. 2024, arXiv 2412.04431); binary spherical quantisation (Zhao et al. 2024, arXiv
2406.07548).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers looks it up here to load this class
from torch import Tensor
from torch.nn import functional as F

from hasten.pipelines.var.convnet import ConvDecoder, ConvEncoder
from hasten.pipelines.var.tokenizer import ScaleTokenizer
from hasten.schedules.scales import Grid, Schedule

__all__ = ["BSQAutoencoder"]


class BSQAutoencoder(ScaleTokenizer, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Autoencoder with a latent of bits.

    Args:
        block_out_channels: channels of each level, from the finest.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        bits: latent channels, one bit each.
        token_patch: side of a token in latent positions; with 2, a token has the bits of four positions.
        norm_groups: groups of the group normalisation.
        unit_latent: normalise every position of an encoded latent to unit length before quantisation. The published
            tokenizers do not.
    """

    _supports_gradient_checkpointing = False
    classes = 2

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (128, 256, 512, 512, 512),
        layers_per_block: int = 2,
        bits: int = 32,
        token_patch: int = 1,
        norm_groups: int = 32,
        unit_latent: bool = False,
    ) -> None:
        super().__init__()
        shape = (block_out_channels, layers_per_block, bits, norm_groups, False)
        self.encoder = ConvEncoder(*shape)
        self.decoder = ConvDecoder(*shape)
        self.token_patch, self.unit_latent = token_patch, unit_latent
        self.choices = bits * token_patch**2
        self.patch = token_patch * 2 ** (len(block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`ScaleTokenizer.encode`; positions have length 1 with ``unit_latent``."""
        latent: Tensor = self.encoder(images.to(self.encoder.conv_in.weight.dtype)).float()
        return F.normalize(latent, dim=1) if self.unit_latent else latent

    def empty_latent(self, batch: int, schedule: Schedule) -> Tensor:
        """See :meth:`ScaleTokenizer.empty_latent`."""
        return torch.zeros(batch, self.config["bits"], *self._latent_grid(schedule[-1]), device=self.device)

    def add_scale(self, latent: Tensor, choices: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """See :meth:`ScaleTokenizer.add_scale`; bilinear upsampling, except at the last scale."""
        codes = self.codes(choices, schedule[scale])
        if scale < len(schedule) - 1:
            codes = F.interpolate(codes, size=latent.shape[-2:], mode="bilinear")
        return latent + codes

    def codes(self, choices: Tensor, grid: Grid) -> Tensor:
        """Bits (B, n * bits per token) as latents ``+-1 / sqrt(bits)``, float32 (B, bits, h, w)."""
        signs = (2.0 * choices.float() - 1.0) / self.config["bits"] ** 0.5
        tokens = signs.unflatten(1, (*grid, self.choices)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(tokens, self.token_patch)

    def next_input(self, latent: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """See :meth:`ScaleTokenizer.next_input`; reduced bilinearly."""
        small = F.interpolate(latent, size=self._latent_grid(schedule[scale]), mode="bilinear")
        return F.pixel_unshuffle(small, self.token_patch).flatten(2).transpose(1, 2)

    def choose(self, rest: Tensor, grid: Grid) -> Tensor:
        """See :meth:`ScaleTokenizer.choose`; area averaging; the bit is the sign."""
        small = F.interpolate(rest, size=self._latent_grid(grid), mode="area")
        return (F.pixel_unshuffle(small, self.token_patch) > 0).long().permute(0, 2, 3, 1).flatten(1)

    def decode_latent(self, latent: Tensor) -> Tensor:
        """See :meth:`ScaleTokenizer.decode_latent`."""
        pictures: Tensor = self.decoder(latent)
        return pictures

    def _latent_grid(self, grid: Grid) -> Grid:
        return grid[0] * self.token_patch, grid[1] * self.token_patch
