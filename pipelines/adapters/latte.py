"""Latte (diffusers ``LatteTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    FrameMixing,
    LatentSize,
    Path,
    Pipeline,
    TokenGrid,
    VariancePreservingPath,
    VideoLayout,
)
from hasten.pipelines.adapters.untried import RESIZING


class LatteLayout(VideoLayout):
    """Plain latents; the output has a learned variance behind the noise. Positions follow the shape."""

    resizing = RESIZING

    factor = "vae_scale_factor"

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_size`` of the transformer."""
        side: int = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        return side, side

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """The autoencoder works picture by picture."""
        frames: int = arguments["video_length"]
        return frames


class LatteTokens(AttentionTokens):
    """Spatial blocks have the frames in the batch."""

    @override
    def grid(self, denoiser: Any, size: LatentSize) -> TokenGrid:
        """That of one frame."""
        whole = super().grid(denoiser, size)
        return TokenGrid(1, whole.height, whole.width)


ADAPTER = Adapter(
    family="latte",
    pipelines=("LattePipeline",),
    capabilities=(LatteLayout(), LatteTokens(r"transformer_blocks\.\d+\.attn1")),
    models=("LatteTransformer3DModel",),
    missing={
        FrameMixing: "its positions of frames are added within the forward, for the trained number of frames"
    },
)
