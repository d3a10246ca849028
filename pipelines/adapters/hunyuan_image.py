"""HunyuanImage 2.1 (diffusers ``HunyuanImageTransformer2DModel``): base model and refiner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    FlowPath,
    Guidance,
    ImageLayout,
    JointTokens,
    Path,
    Pipeline,
    VideoLayout,
)
from hasten.pipelines.adapters.untried import RESIZING


class HunyuanImageLayout(ImageLayout):
    """Plain latents; rotary positions follow the shape."""

    resizing = RESIZING
    even_sigmas = True

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow; distilled models are told the next time, too, which :meth:`refusal` looks at."""
        return FlowPath()

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """Mean-flow models are told two times; the second has no counterpart at another resolution."""
        if pipe.transformer.config.use_meanflow:
            return "its mean-flow denoiser is told the next timestep too"
        return super().refusal(pipe)


class HunyuanImageRefinerLayout(VideoLayout):
    """(B, C, 1, H, W): the latents, then those of the picture to refine."""

    resizing = RESIZING
    even_sigmas = True

    factor = "vae_scale_factor"
    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Half and half."""
        return Channels.leading(pipe.transformer.config.out_channels)

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``default_sample_size``."""
        side: int = pipe.default_sample_size * pipe.vae_scale_factor
        return side, side

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """A picture."""
        return 1


_TOKENS = JointTokens(r"(single_)?transformer_blocks\.\d+\.attn", "after")

ADAPTERS = (
    Adapter(
        family="hunyuan-image",
        pipelines=("HunyuanImagePipeline",),
        capabilities=(HunyuanImageLayout(), _TOKENS),
        models=("HunyuanImageTransformer2DModel",),
    ),
    Adapter(
        family="hunyuan-image-refiner",
        pipelines=("HunyuanImageRefinerPipeline",),
        capabilities=(HunyuanImageRefinerLayout(), _TOKENS),
    ),
)
