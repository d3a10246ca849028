"""Motif-Video (diffusers ``MotifVideoTransformer3DModel``)."""

from __future__ import annotations

from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    FlowPath,
    FrameMixing,
    Guidance,
    JointTokens,
    Path,
    Pipeline,
    VideoLayout,
)
from hasten.pipelines.adapters.untried import RESIZING


class MotifVideoLayout(VideoLayout):
    """Latents, as many channels of a given picture, and a mask; rotary positions follow the shape."""

    resizing = RESIZING
    even_sigmas = True

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """The mask comes last."""
        noisy: int = pipe.transformer.config.out_channels
        return Channels.leading(noisy, slice(2 * noisy, count))


ADAPTER = Adapter(
    family="motif-video",
    pipelines=("MotifVideoPipeline", "MotifVideoImage2VideoPipeline"),
    capabilities=(MotifVideoLayout(), JointTokens(r"(single_)?transformer_blocks\.\d+\.attn", "after")),
    models=("MotifVideoTransformer3DModel",),
    missing={FrameMixing: "its last blocks get the tokens of the video twice"},
)
