"""Stable Diffusion XL and Kolors (diffusers ``StableDiffusionXLPipeline``).

``added_cond_kwargs["time_ids"]`` stay: the original size tells the quality of the training picture, not the
extent of the latents, and the target size names the aspect ratio in which the model was fine-tuned. Halving
them asks for a blurred picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import Adapter, ControlNetwork, Pipeline
from hasten.pipelines.adapters.stable_diffusion import EDITS_BY_MAPS, UNET, StableDiffusionLayout


class StableDiffusionXLLayout(StableDiffusionLayout):
    """As Stable Diffusion; the pipeline keeps its default size itself."""

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``default_sample_size`` of the pipeline."""
        side: int = pipe.default_sample_size * pipe.vae_scale_factor
        return side, side


ADAPTER = Adapter(
    family="stable-diffusion-xl",
    pipelines=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "StableDiffusionXLAdapterPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPAGImg2ImgPipeline",
        "StableDiffusionXLPAGInpaintPipeline",
        "StableDiffusionXLControlNetPAGPipeline",
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        "KolorsPipeline",
        "KolorsImg2ImgPipeline",
        "KolorsPAGPipeline",
    ),
    denoisers=("unet",),
    capabilities=(StableDiffusionXLLayout(), ControlNetwork(), *UNET),
    refused={"LEditsPPPipelineStableDiffusionXL": EDITS_BY_MAPS},
)
