"""DiT for classes (diffusers ``DiTTransformer2DModel``) and unconditional diffusion in pixels (``UNet2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    ImageLayout,
    LatentSize,
    Path,
    Pipeline,
    VariancePreservingPath,
)
from hasten.pipelines.adapters.untried import RESIZING


class DiTLayout(ImageLayout):
    """Plain square latents; the output has a learned variance behind the noise. Positions follow the shape."""

    resizing = RESIZING

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def scale(self, pipe: Pipeline) -> int:
        """The pipeline does not tell its autoencoder's factor."""
        factor: int = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        return factor

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """Always ``sample_size``."""
        side: int = pipe.transformer.config.sample_size
        return LatentSize(side, side)


class PixelLayout(ImageLayout):
    """Pictures themselves."""

    resizing = RESIZING

    latents = "sample"
    multiple = 4

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def scale(self, pipe: Pipeline) -> int:
        """No autoencoder."""
        return 1

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """``sample_size`` of the U-Net, which may be a pair, unless told."""
        side = pipe.unet.config.sample_size
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return LatentSize(arguments.get("height") or height, arguments.get("width") or width)


_ADDED = "its attention joins keys of the text to those of the picture"

ADAPTERS = (
    Adapter(
        family="dit",
        pipelines=("DiTPipeline",),
        capabilities=(DiTLayout(), AttentionTokens(r"transformer_blocks\.\d+\.attn1")),
        models=("DiTTransformer2DModel",),
    ),
    Adapter(
        family="pixels",
        pipelines=("DDIMPipeline", "DDPMPipeline"),
        denoisers=("unet",),
        capabilities=(PixelLayout(),),
        missing={AttentionTokens: "the layers of UNet2DModel are named as those of no other family"},
    ),
    Adapter(
        family="deepfloyd-if",
        pipelines=("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline"),
        denoisers=("unet",),
        capabilities=(PixelLayout(),),
        missing={AttentionTokens: _ADDED},
    ),
)
