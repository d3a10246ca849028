"""Stable Diffusion 1.x and 2.x, and what shares its pipelines (diffusers ``UNet2DConditionModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    ControlNetwork,
    Guidance,
    ImageLayout,
    Path,
    Pipeline,
    UNetTokens,
    UNetUnits,
    VariancePreservingPath,
    image_pixels,
)
from hasten.pipelines.adapters.untried import RESIZING

CONTROLS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
"""Arguments of diffusers' U-Nets with features of ControlNets and T2I-Adapters."""


EDITS_BY_MAPS = (
    "it edits by masks made of attention maps of its inversion, which belong to one size and dense attention"
)


class StableDiffusionLayout(ImageLayout):
    """Plain latents; positions come from convolutions.

    The UNet accepts every extent: it passes exact sizes to its up-samplers where halving leaves a remainder.
    Schedulers that scale the model input (Euler) make it variance preserving, whatever they keep themselves.
    """

    latents = "sample"
    multiple = 1
    controls = CONTROLS

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Inpainting puts one mask behind the latents; all other conditions are clean latents or pictures."""
        noisy: int = pipe.unet.config.out_channels
        return Channels.leading(noisy, slice(noisy, noisy + (count == 2 * noisy + 1)))

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_size`` of the UNet, which may be a pair."""
        side = pipe.unet.config.sample_size
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor

    @override
    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Image-to-image calls have no ``height``: the image decides."""
        if "height" not in arguments:
            return image_pixels(pipe, arguments["image"])
        return super().call_pixels(pipe, arguments)


class LatentConsistencyLayout(StableDiffusionLayout):
    """Guidance is an argument of the U-Net."""

    resizing = RESIZING

    guidance = Guidance.EMBEDDED


UNET = (UNetTokens(), UNetUnits())
"""What all pipelines around a ``UNet2DConditionModel`` of Stable Diffusion have besides their layout."""

ADAPTERS = (
    Adapter(
        family="stable-diffusion",
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "StableDiffusionDepth2ImgPipeline",
            "StableDiffusionUpscalePipeline",
            "StableDiffusionImageVariationPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
            "StableDiffusionAdapterPipeline",
            "StableDiffusionPAGPipeline",
            "StableDiffusionPAGImg2ImgPipeline",
            "StableDiffusionPAGInpaintPipeline",
            "StableDiffusionControlNetPAGPipeline",
            "StableDiffusionControlNetPAGInpaintPipeline",
            "StableUnCLIPPipeline",
            "StableUnCLIPImg2ImgPipeline",
        ),
        denoisers=("unet",),
        capabilities=(StableDiffusionLayout(), ControlNetwork(), *UNET),
        refused={
            "LEditsPPPipelineStableDiffusion": EDITS_BY_MAPS,
            "StableDiffusionLatentUpscalePipeline": "its U-Net works on pairs of pixels of a picture that is given "
            "at the size of the result, in steps of a Karras solver",
        },
    ),
    Adapter(
        family="latent-consistency",
        pipelines=("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        denoisers=("unet",),
        capabilities=(LatentConsistencyLayout(), *UNET),
    ),
)
