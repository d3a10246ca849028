"""Stable Video Diffusion (diffusers ``UNetSpatioTemporalConditionModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    FrameMixing,
    LatentSize,
    LogSigmaPath,
    Path,
    Pipeline,
    UNetTokens,
)
from hasten.pipelines.adapters.text_to_video import TextToVideoLayout
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor


class StableVideoDiffusionLayout(TextToVideoLayout):
    """(B, F, C, H, W): noisy latents, then those of the given picture, repeated for every frame."""

    resizing = RESIZING

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler keeps sigmas from 0.002 to 700 and scales the model's input."""
        return LogSigmaPath()

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Half and half."""
        return Channels.leading(pipe.unet.config.out_channels)

    @override
    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Channels before frames."""
        result: Tensor = packed.transpose(1, 2)
        return result

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """Frames before channels."""
        return latent.transpose(1, 2)

    @override
    def given_size(self, latents: Any) -> LatentSize:
        """(B, F, C, H, W)."""
        return LatentSize(latents.shape[3], latents.shape[4], latents.shape[1])

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """As many as the U-Net was trained on, unless told."""
        frames: int = arguments.get("num_frames") or pipe.unet.config.num_frames
        return frames


ADAPTER = Adapter(
    family="stable-video-diffusion",
    pipelines=("StableVideoDiffusionPipeline",),
    denoisers=("unet",),
    capabilities=(StableVideoDiffusionLayout(), UNetTokens()),
    missing={FrameMixing: "its guidance scale and its conditions differ from frame to frame"},
)
