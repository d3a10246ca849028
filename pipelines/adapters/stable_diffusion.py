"""Stable Diffusion 1.x and 2.x (diffusers ``UNet2DConditionModel``, ``StableDiffusionPipeline``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    ImageLayout,
    Path,
    UNetTokens,
    UNetUnits,
    VariancePreservingPath,
    image_pixels,
)

CONCATENATES = (
    "it appends condition channels to the latents, which a forward at another size would resize as noise"
)
CONTROLLED = "its control residuals are computed outside the denoiser, at full size"


class StableDiffusionLayout(ImageLayout):
    """Plain latents; positions come from convolutions.

    The UNet accepts every extent: it passes exact sizes to its up-samplers where halving leaves a remainder.
    Schedulers that scale the model input (Euler) make it variance preserving, whatever they keep themselves.
    """

    latents = "sample"
    multiple = 1

    @override
    def path(self, pipe: Any) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def default_pixels(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_size`` of the UNet, which may be a pair."""
        side = pipe.unet.config.sample_size
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor

    @override
    def call_pixels(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Image-to-image calls have no ``height``: the image decides."""
        if "height" not in arguments:
            return image_pixels(pipe, arguments["image"])
        return super().call_pixels(pipe, arguments)

    @override
    def refusal(self, pipe: Any) -> str | None:
        """Inpainting UNets have nine input channels."""
        config = pipe.unet.config
        return CONCATENATES if config.in_channels != config.out_channels else super().refusal(pipe)


ADAPTER = Adapter(
    family="stable-diffusion",
    pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    denoisers=("unet",),
    capabilities=(StableDiffusionLayout(), UNetTokens(), UNetUnits()),
    refused={
        "StableDiffusionInstructPix2PixPipeline": CONCATENATES,
        "StableDiffusionDepth2ImgPipeline": CONCATENATES,
        "StableDiffusionUpscalePipeline": CONCATENATES,
        "StableDiffusionLatentUpscalePipeline": CONCATENATES,
        "StableDiffusionControlNetPipeline": CONTROLLED,
        "StableDiffusionControlNetImg2ImgPipeline": CONTROLLED,
        "StableDiffusionControlNetInpaintPipeline": CONTROLLED,
        "StableDiffusionAdapterPipeline": CONTROLLED,
    },
)
