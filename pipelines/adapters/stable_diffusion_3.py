"""Stable Diffusion 3 and 3.5 (diffusers ``SD3Transformer2DModel``).

The position embedding is a centre crop of one fixed grid: a smaller latent sees the middle of what a larger
one sees, at the same spacing. The model does that itself, from the shape.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from hasten.pipelines.adapters._base import Adapter
from hasten.pipelines.adapters._layouts import ImageLayout
from hasten.pipelines.adapters._paths import FlowPath, Path
from hasten.pipelines.adapters._tokens import JointTokens
from hasten.pipelines.adapters.stable_diffusion import CONCATENATES, CONTROLLED


class StableDiffusion3Layout(ImageLayout):
    """Plain latents, told ``1000 t``."""

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def refusal(self, pipe: Any) -> str | None:
        """``StableDiffusion3InpaintPipeline`` appends channels for models with 33 of them."""
        config = pipe.transformer.config
        return CONCATENATES if config.in_channels != config.out_channels else super().refusal(pipe)


ADAPTER = Adapter(
    family="stable-diffusion-3",
    pipelines=(
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
    ),
    capabilities=(
        StableDiffusion3Layout(),
        JointTokens(r"transformer_blocks\.\d+\.attn", "after", alone=r"transformer_blocks\.\d+\.attn2"),
    ),
    refused={
        "StableDiffusion3ControlNetPipeline": CONTROLLED,
        "StableDiffusion3ControlNetInpaintingPipeline": CONTROLLED,
    },
)
