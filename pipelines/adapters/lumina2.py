"""Lumina-Image 2.0 (diffusers ``Lumina2Transformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    BlockOutputs,
    FlowPath,
    Guidance,
    ImageLayout,
    JointTokens,
    LatentSize,
    Path,
    Pipeline,
    UnsupportedError,
)


class Lumina2Layout(ImageLayout):
    """Plain latents; rotary positions follow the shape."""

    guidance = Guidance.SEQUENTIAL
    even_sigmas = True

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told the data fraction ``1 - t``; the pipeline negates the output."""
        return FlowPath(scale=1.0, data_fraction=True)

    @override
    def shift_tokens(self, pipe: Pipeline, size: LatentSize) -> int:
        """The pipeline takes the second axis of its unpacked latents, their channels, for the number of tokens."""
        return int(pipe.transformer.config.in_channels)


class Lumina2Tokens(JointTokens):
    """Text without its padding, then the picture."""

    @override
    def text_length(self, kwargs: Mapping[str, Any]) -> int:
        """Of all samples; where they differ, pictures begin at different places."""
        lengths = kwargs["encoder_attention_mask"].sum(1).tolist()
        if len(set(lengths)) > 1:
            raise UnsupportedError(
                f"Lumina 2 puts pictures behind texts of {sorted(set(lengths))} tokens, so their tokens do not line "
                f"up; call it with one prompt at a time"
            )
        return int(lengths[0])


ADAPTER = Adapter(
    family="lumina2",
    pipelines=("Lumina2Pipeline",),
    capabilities=(
        Lumina2Layout(),
        Lumina2Tokens(r"layers\.\d+\.attn", "before"),
        BlockOutputs({"Lumina2TransformerBlock": (0, None)}),
    ),
    models=("Lumina2Transformer2DModel",),
)
