"""How a video family turns latents into frames, in pieces that become ready one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["CausalDecoder", "ChunkedDecoder", "FrameDecoder", "PictureDecoder", "WholeDecoder"]


class FrameDecoder(ABC):
    """Decoding of one family's video autoencoder."""

    independent: ClassVar[bool] = False
    """Whether every latent frame can be decoded alone, so that processes can share the work."""
    streams: ClassVar[bool] = True
    """Whether frames come out before the last latent frame went in, in memory that does not grow with the
    video."""

    def unpack(self, pipe: Any, latents: Tensor, size: tuple[int, int, int]) -> Tensor:  # noqa: ARG002
        """The latents a pipeline returns as (B, C, F, H, W). ``size`` is their (frames, height, width)."""
        return latents

    @abstractmethod
    def frames(self, pipe: Any, latents: Tensor) -> Iterator[Tensor]:
        """Pieces of the video, (B, 3, f, H, W) in [-1, 1] or slightly beyond, in order.

        Args:
            pipe: the pipeline.
            latents: (B, C, F, H, W).
        """


class PictureDecoder(FrameDecoder):
    """An image autoencoder, a few frames at a time."""

    independent = True
    chunk: ClassVar[int] = 4

    def frames(self, pipe: Any, latents: Tensor) -> Iterator[Tensor]:
        """``chunk`` frames each."""
        latents = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
        for part in latents.split(self.chunk, 2):
            pictures = pipe.vae.decode(part.transpose(1, 2).flatten(0, 1)).sample
            yield pictures.unflatten(0, (len(part), -1)).transpose(1, 2)


class WholeDecoder(FrameDecoder):
    """An autoencoder that the pipeline calls once for the whole video."""

    streams = False

    def frames(self, pipe: Any, latents: Tensor) -> Iterator[Tensor]:
        """Everything at once, as the pipeline does it."""
        yield pipe.vae.decode(self.scaled(pipe, latents).to(pipe.vae.dtype), return_dict=False)[0]

    def scaled(self, pipe: Any, latents: Tensor) -> Tensor:
        """Latents as the autoencoder knows them."""
        scaled: Tensor = latents / pipe.vae.config.scaling_factor
        return scaled


class CausalDecoder(FrameDecoder):
    """Wan's autoencoder: one latent frame at a time, every convolution remembering two frames."""

    def frames(self, pipe: Any, latents: Tensor) -> Iterator[Tensor]:
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
    """CogVideoX's autoencoder: two latent frames at a time, an odd one with the first, caches from chunk
    to chunk."""

    def unpack(self, pipe: Any, latents: Tensor, size: tuple[int, int, int]) -> Tensor:  # noqa: ARG002
        """Channels before frames."""
        return latents.transpose(1, 2)

    def frames(self, pipe: Any, latents: Tensor) -> Iterator[Tensor]:
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
