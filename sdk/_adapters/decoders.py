"""How a video family turns latents into frames, in pieces that become ready one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hasten._pipeline import Pipeline

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["CausalDecoder", "ChunkedDecoder", "FrameDecoder", "PictureDecoder", "TiledDecoder"]


class FrameDecoder(ABC):
    """Decoding of one family's video autoencoder."""

    independent: ClassVar[bool] = False
    """Whether every latent frame can be decoded alone, so that processes can share the work."""

    def unpack(self, pipe: Pipeline, latents: Tensor, size: tuple[int, int, int]) -> Tensor:  # noqa: ARG002
        """The latents a pipeline returns as (B, C, F, H, W). ``size`` is their (frames, height, width)."""
        return latents

    @abstractmethod
    def frames(self, pipe: Pipeline, latents: Tensor) -> Iterator[Tensor]:
        """Pieces of the video, (B, 3, f, H, W) in [-1, 1] or slightly beyond, in order.

        Args:
            pipe: the pipeline.
            latents: (B, C, F, H, W).
        """


class PictureDecoder(FrameDecoder):
    """An image autoencoder, a few frames at a time."""

    independent = True
    chunk: ClassVar[int] = 4

    def frames(self, pipe: Pipeline, latents: Tensor) -> Iterator[Tensor]:
        """``chunk`` frames each."""
        latents = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
        for part in latents.split(self.chunk, 2):
            pictures = pipe.vae.decode(part.transpose(1, 2).flatten(0, 1)).sample
            yield pictures.unflatten(0, (len(part), -1)).transpose(1, 2)


class TiledDecoder(FrameDecoder):
    """An autoencoder that looks both ways: in overlapping tiles where it decodes in them by itself, else at once.

    Tiles are those of diffusers' ``_temporal_tiled_decode``, which the pipeline calls where the autoencoder's
    ``use_framewise_decoding`` is set and the video is longer than one tile; here each is given out when the next one
    does not change it any more.
    """

    superfluous: ClassVar[slice] = slice(1, None)
    """Frames kept of all tiles but the first: which of its ends is the additional one."""

    def frames(self, pipe: Pipeline, latents: Tensor) -> Iterator[Tensor]:
        """One tile each, or everything."""
        vae = pipe.vae
        latents = self.scaled(pipe, latents).to(vae.dtype)
        ratio, stride = vae.temporal_compression_ratio, vae.tile_sample_stride_num_frames
        longest, overlap = vae.tile_sample_min_num_frames // ratio, vae.tile_sample_min_num_frames - stride
        if not vae.use_framewise_decoding or latents.shape[2] <= longest:
            yield vae.decode(latents, return_dict=False)[0]
            return
        missing, before = (latents.shape[2] - 1) * ratio + 1, None
        for first in range(0, latents.shape[2], stride // ratio):
            tile = self._tile(vae, latents[:, :, first : first + longest + 1])
            if before is not None:
                tile = vae.blend_t(before, tile[:, :, self.superfluous], overlap)
            before = tile
            shown = tile[:, :, : min(stride + (first == 0), missing)]
            missing -= shown.shape[2]
            if shown.shape[2]:
                yield shown

    def scaled(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Latents as the autoencoder knows them."""
        scaled: Tensor = latents / pipe.vae.config.scaling_factor
        return scaled

    def _tile(self, vae: Any, latents: Tensor) -> Tensor:
        ratio = vae.spatial_compression_ratio
        high = latents.shape[3] > vae.tile_sample_min_height // ratio
        wide = latents.shape[4] > vae.tile_sample_min_width // ratio
        tile: Tensor
        if vae.use_tiling and (high or wide):
            tile = vae.tiled_decode(latents).sample
        else:
            quantised = getattr(vae, "post_quant_conv", None)
            tile = vae.decoder(latents if quantised is None else quantised(latents))
        return tile


class CausalDecoder(FrameDecoder):
    """Wan's autoencoder: one latent frame at a time, every convolution remembering two frames."""

    def frames(self, pipe: Pipeline, latents: Tensor) -> Iterator[Tensor]:
        """One latent frame each: 1 frame, then 4 at a time."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        vae = pipe.vae
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, vae.dtype)
        # The pipeline's own order of operations: rounding errors grow from frame to frame.
        inverse = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, vae.dtype)
        vae.clear_cache()
        try:
            for index, part in enumerate(latents.to(vae.dtype).split(1, 2)):
                x = vae.post_quant_conv(part / inverse + mean)
                out = vae.decoder(x, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=index == 0)
                if vae.config.patch_size is not None:
                    out = unpatchify(out, patch_size=vae.config.patch_size)
                yield out.clamp(-1.0, 1.0)
        finally:
            vae.clear_cache()


class ChunkedDecoder(FrameDecoder):
    """CogVideoX's autoencoder: two latent frames at a time, an odd one with the first, caches between chunks."""

    def unpack(self, pipe: Pipeline, latents: Tensor, size: tuple[int, int, int]) -> Tensor:  # noqa: ARG002
        """Channels before frames."""
        return latents.transpose(1, 2)

    def frames(self, pipe: Pipeline, latents: Tensor) -> Iterator[Tensor]:
        """One chunk each."""
        vae = pipe.vae
        latents = latents.to(vae.dtype) / pipe.vae_scaling_factor_image
        size = vae.num_latent_frames_batch_size
        rest = latents.shape[2] % size
        first = size + rest if latents.shape[2] >= size else latents.shape[2]
        chunks = [first] + [size] * ((latents.shape[2] - first) // size)
        cache = None
        for part in latents.split(chunks, 2):
            x = part if vae.post_quant_conv is None else vae.post_quant_conv(part)
            out, cache = vae.decoder(x, conv_cache=cache)
            yield out
