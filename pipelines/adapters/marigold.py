"""Marigold (diffusers ``UNet2DConditionModel``): depth, normals and intrinsics of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import Adapter, Channels, Guidance, LatentSize, Pipeline, unknown_size
from hasten.pipelines.adapters.stable_diffusion import UNET, StableDiffusionLayout
from hasten.pipelines.adapters.untried import RESIZING


class MarigoldLayout(StableDiffusionLayout):
    """The latents of the picture come first, those of the prediction behind them."""

    resizing = RESIZING

    guidance = Guidance.EMBEDDED

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """The last ones are noisy."""
        return Channels(slice(count - pipe.unet.config.out_channels, count))

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """The picture is fitted into ``processing_resolution`` during the call."""
        raise unknown_size(pipe)


ADAPTER = Adapter(
    family="marigold",
    pipelines=("MarigoldDepthPipeline", "MarigoldNormalsPipeline", "MarigoldIntrinsicsPipeline"),
    denoisers=("unet",),
    capabilities=(MarigoldLayout(), *UNET),
)
