"""Mochi 1 (diffusers ``MochiTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    CacheDefaults,
    FlowPath,
    FrameMixing,
    InvertedFlowPath,
    Path,
    Pipeline,
    VideoLayout,
)
from hasten.pipelines.adapters.untried import RESIZING


class MochiLayout(VideoLayout):
    """Plain latents; rotary positions follow the shape."""

    resizing = RESIZING

    factor = "vae_spatial_scale_factor"
    frame_factor = "vae_temporal_scale_factor"

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The released scheduler counts from noise at 0 to data at 1000, and the model learned that direction."""
        if pipe.scheduler.config.get("invert_sigmas", False):
            return InvertedFlowPath(data_fraction=True)
        return FlowPath()

    @override
    def sigmas(self, pipe: Pipeline, steps: int) -> list[float]:
        """Half of the steps fall linearly to 0.975, the others quadratically; the pipeline's own function."""
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        schedule: list[float] = linear_quadratic_schedule(steps, 0.025)
        return schedule

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Set by the pipeline."""
        return pipe.default_height, pipe.default_width


ADAPTER = Adapter(
    family="mochi",
    pipelines=("MochiPipeline",),
    capabilities=(MochiLayout(), CacheDefaults(0.035, "default of ParaAttention")),
    models=("MochiTransformer3DModel",),
    missing={
        AttentionTokens: "its attention computes one sample after another, each with a text of its own length",
        FrameMixing: "its attention computes one sample after another, each with a text of its own length",
    },
)
