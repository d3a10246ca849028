"""The tokenizer of VAR: an autoencoder whose latent is quantised scale by scale, each scale coding the residual.

Source: VAR (Tian et al. 2024, arXiv 2404.02905), algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers looks it up here to load this class
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.pipelines.var.convnet import ConvDecoder, ConvEncoder
from hasten.pipelines.var.tokenizer import ScaleTokenizer
from hasten.schedules.scales import Grid, Schedule, shared_layer_index

__all__ = ["MultiScaleVQModel", "ScaleQuantizer"]


class ScaleQuantizer(nn.Module):
    """One codebook for all scales, and a few convolutions that smooth upsampled codes.

    Args:
        codebook_size: number of entries.
        channels: channels of an entry.
        refinements: number of convolutions, distributed over the scales.
    """

    def __init__(self, codebook_size: int, channels: int, refinements: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, channels)
        self.refine = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(refinements))

    def nearest(self, latent: Tensor) -> Tensor:
        """Index (B, h * w) of the nearest entry (L2) for every position of (B, C, h, w)."""
        rows = latent.float().flatten(2).transpose(1, 2)
        book = self.embedding.weight.float()
        return (book.square().sum(1) - 2 * rows @ book.T).argmin(-1)

    def codes(self, indices: Tensor, grid: Grid) -> Tensor:
        """Entries (B, C, rows, columns) of indices (B, rows * columns), float32."""
        found: Tensor = self.embedding(indices).float().transpose(1, 2).unflatten(2, grid)
        return found

    def contribution(self, codes: Tensor, scale: int, scales: int, size: Grid) -> Tensor:
        """The contribution of one scale to the latent: bicubic upsampling, and then the mean with its refinement."""
        if codes.shape[-2:] != size:
            codes = F.interpolate(codes, size=size, mode="bicubic")
        layer = self.refine[shared_layer_index(scale, scales, len(self.refine))]
        refined: Tensor = layer(codes.to(layer.weight.dtype))  # type: ignore[arg-type]
        return 0.5 * codes + 0.5 * refined.float()


class MultiScaleVQModel(ScaleTokenizer, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Multi-scale VQ autoencoder.

    Args:
        block_out_channels: channels of each level, from the finest; each further level halves the sides.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of the latent.
        codebook_size: number of entries of the codebook.
        refinements: number of convolutions, distributed over the scales.
        norm_groups: groups of the group normalisation.
        attention: whether the coarsest level has attention.
        token_patch: side of a token in latent positions, whose channels are stacked.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (160, 160, 320, 320, 640),
        layers_per_block: int = 2,
        latent_channels: int = 32,
        codebook_size: int = 4096,
        refinements: int = 4,
        norm_groups: int = 32,
        attention: bool = True,
        token_patch: int = 1,
    ) -> None:
        super().__init__()
        shape = (block_out_channels, layers_per_block, latent_channels, norm_groups, attention)
        self.encoder = ConvEncoder(*shape)
        self.decoder = ConvDecoder(*shape)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.quantize = ScaleQuantizer(codebook_size, latent_channels * token_patch**2, refinements)
        self.token_patch = token_patch
        self.patch = token_patch * 2 ** (len(block_out_channels) - 1)
        self.classes = codebook_size

    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`ScaleTokenizer.encode`; one position per token."""
        latent: Tensor = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        return F.pixel_unshuffle(latent.float(), self.token_patch)

    def empty_latent(self, batch: int, schedule: Schedule) -> Tensor:
        """See :meth:`ScaleTokenizer.empty_latent`."""
        channels = self.quantize.embedding.embedding_dim
        return torch.zeros(batch, channels, *schedule[-1], device=self.device)

    def add_scale(self, latent: Tensor, choices: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """See :meth:`ScaleTokenizer.add_scale`."""
        codes = self.quantize.codes(choices, schedule[scale])
        return latent + self.quantize.contribution(codes, scale, len(schedule), schedule[-1])

    def next_input(self, latent: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """See :meth:`ScaleTokenizer.next_input`; area-averaged."""
        return F.interpolate(latent, size=schedule[scale], mode="area").flatten(2).transpose(1, 2)

    def choose(self, rest: Tensor, grid: Grid) -> Tensor:
        """See :meth:`ScaleTokenizer.choose`; reduced by area averaging."""
        return self.quantize.nearest(F.interpolate(rest, size=grid, mode="area"))

    def decode_latent(self, latent: Tensor) -> Tensor:
        """See :meth:`ScaleTokenizer.decode_latent`."""
        pictures: Tensor = self.decoder(self.post_quant_conv(F.pixel_shuffle(latent, self.token_patch)))
        return pictures
