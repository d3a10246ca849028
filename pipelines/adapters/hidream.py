"""HiDream-I1 (diffusers ``HiDreamImageTransformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import Adapter, AttentionTokens, FlowPath, ImageLayout, LatentSize, Path, Pipeline
from hasten.pipelines.adapters.untried import RESIZING


class HiDreamLayout(ImageLayout):
    """Plain latents; the denoiser packs them itself, and other shapes than squares into its longest sequence."""

    resizing = RESIZING

    timestep = "timesteps"

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow; the pipeline negates the output."""
        return FlowPath(negated=True)

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """Scaled to the default area, in whole tokens."""
        height, width = self.call_pixels(pipe, arguments)
        side = pipe.default_sample_size * pipe.vae_scale_factor
        ratio, step = (side**2 / (height * width)) ** 0.5, 2 * pipe.vae_scale_factor
        rows, columns = (int(pixels * ratio // step) for pixels in (height, width))
        return LatentSize(2 * rows, 2 * columns)


ADAPTER = Adapter(
    family="hidream",
    pipelines=("HiDreamImagePipeline",),
    capabilities=(HiDreamLayout(),),
    models=("HiDreamImageTransformer2DModel",),
    missing={AttentionTokens: "the order of its tokens depends on the shape of the picture"},
)
