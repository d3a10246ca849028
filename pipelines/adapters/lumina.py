"""Lumina-Next (diffusers ``LuminaNextDiT2DModel``)."""

from __future__ import annotations

from typing_extensions import override

from hasten.extend import Adapter, AttentionTokens, FlowPath, ImageLayout, Path, Pipeline
from hasten.pipelines.adapters.untried import RESIZING


class LuminaLayout(ImageLayout):
    """Plain latents; rotary positions are rows of one large table. The output has a learned variance behind it."""

    conditional_first = True
    resizing = RESIZING

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told the data fraction ``1 - t``; the pipeline negates the output."""
        return FlowPath(scale=1.0, data_fraction=True)


ADAPTER = Adapter(
    family="lumina",
    pipelines=("LuminaPipeline",),
    capabilities=(LuminaLayout(), AttentionTokens(r"layers\.\d+\.attn1")),
    models=("LuminaNextDiT2DModel",),
)
