"""PRX (diffusers ``PRXTransformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import Adapter, AttentionTokens, FlowPath, ImageLayout, Path, Pipeline
from hasten.pipelines.adapters.pixart import binned_pixels
from hasten.pipelines.adapters.untried import RESIZING


class PRXLayout(ImageLayout):
    """Plain latents; positions follow the shape."""

    resizing = RESIZING

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told ``t``."""
        return FlowPath(scale=1.0)

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``default_sample_size`` in pixels."""
        side: int = pipe.default_sample_size
        return side, side

    @override
    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``use_resolution_binning`` picks the nearest aspect ratio of the training set."""
        height, width = super().call_pixels(pipe, arguments)
        if not arguments.get("use_resolution_binning", True):
            return height, width
        from diffusers.pipelines.prx.pipeline_prx import ASPECT_RATIO_BINS

        ratios: Any = ASPECT_RATIO_BINS.get(pipe.default_sample_size)
        return binned_pixels(pipe, height, width, ratios)


ADAPTER = Adapter(
    family="prx",
    pipelines=("PRXPipeline",),
    capabilities=(PRXLayout(),),
    models=("PRXTransformer2DModel",),
    missing={AttentionTokens: "its pictures attend to themselves and to the text, which does not attend"},
)
