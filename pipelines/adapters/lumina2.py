"""Lumina-Image 2.0 (diffusers ``Lumina2Transformer2DModel``)."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from hasten.extend import Adapter, BlockOutputs, FlowPath, Guidance, ImageLayout, LatentSize, Path


class Lumina2Layout(ImageLayout):
    """Plain latents; rotary positions follow the shape."""

    guidance = Guidance.SEQUENTIAL
    even_sigmas = True

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow, told the data fraction ``1 - t``; the pipeline negates the output."""
        return FlowPath(scale=1.0, data_fraction=True)

    @override
    def shift_tokens(self, pipe: Any, size: LatentSize) -> int:
        """The pipeline takes the second axis of its unpacked latents, their channels, for the number of tokens."""
        return int(pipe.transformer.config.in_channels)


ADAPTER = Adapter(
    family="lumina2",
    pipelines=("Lumina2Pipeline",),
    capabilities=(Lumina2Layout(), BlockOutputs({"Lumina2TransformerBlock": (0, None)})),
)
