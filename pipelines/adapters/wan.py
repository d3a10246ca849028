"""Wan 2.1 and 2.2 (diffusers ``WanTransformer3DModel``): text to video, image to video, two experts, TI2V."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.pipelines.adapters._base import Adapter, Guidance
from hasten.pipelines.adapters._layouts import ConditionedVideoLayout
from hasten.pipelines.adapters._paths import FlowPath, Path
from hasten.pipelines.adapters._tokens import AttentionTokens


class WanLayout(ConditionedVideoLayout):
    """Plain latents; positions follow the shape.

    Image-to-video models append a mask and an encoded picture as channels; TI2V (``expand_timesteps``)
    instead puts the clean first frame among the latents and gives every token its own timestep.
    """

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Any) -> int:
        """``out_channels``; of two experts one may be absent."""
        expert = pipe.transformer_2 if pipe.transformer is None else pipe.transformer
        count: int = expert.config.out_channels
        return count

    @override
    def masks(self, conditions: int, channels: int) -> slice:
        """One mask channel for each frame of a latent frame, in front of the picture."""
        return slice(0, conditions - channels)

    @override
    def expert_boundary(self, pipe: Any) -> float | None:
        """``boundary_ratio`` of the pipeline's configuration."""
        boundary: float | None = pipe.config.get("boundary_ratio")
        return boundary

    @override
    def call_frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """Frame numbers that don't fit are rounded to the next multiple plus one."""
        frames, step = arguments.get("num_frames"), pipe.vae_scale_factor_temporal
        if frames is None:
            return super().call_frames(pipe, arguments)
        return (frames - 1) // step + 1 if frames % step == 1 else frames // step + 1


ADAPTER = Adapter(
    family="wan",
    pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
    denoisers=("transformer", "transformer_2"),
    capabilities=(WanLayout(), AttentionTokens(r"blocks\.\d+\.attn1")),
    refused={
        "WanVACEPipeline": "its control latents enter the denoiser beside the video, at full size",
        "WanAnimatePipeline": "its pose and face features enter the denoiser beside the video, at full size",
    },
)
