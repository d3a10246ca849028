"""AuraFlow (diffusers ``AuraFlowTransformer2DModel``)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    BlockOutputs,
    FlowPath,
    ImageLayout,
    JointTokens,
    LatentSize,
    Path,
    Pipeline,
)


class AuraFlowLayout(ImageLayout):
    """Plain latents; positions are a centre crop of one learned grid, taken from the shape."""

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told ``t``."""
        return FlowPath(scale=1.0)

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_size`` of the transformer."""
        side: int = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        return side, side

    @override
    def further_text(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int:
        """Register tokens, in front of the text."""
        return int(pipe.transformer.register_tokens.shape[1])

    @override
    def largest(self, pipe: Pipeline) -> LatentSize | None:
        """The square grid that positions are cropped from; the configuration counts its cells."""
        config = pipe.transformer.config
        side = math.isqrt(config.pos_embed_max_size) * config.patch_size
        return LatentSize(side, side)


class AuraFlowTokens(JointTokens):
    """Registers and text, then the picture."""

    @override
    def text_length(self, kwargs: Mapping[str, Any]) -> int:
        """All that is not the picture."""
        return sys.maxsize


ADAPTER = Adapter(
    family="aura-flow",
    pipelines=("AuraFlowPipeline",),
    capabilities=(
        AuraFlowLayout(),
        AuraFlowTokens(r"(joint|single)_transformer_blocks\.\d+\.attn", "before"),
        BlockOutputs({"AuraFlowSingleTransformerBlock": (0, None)}),
    ),
    models=("AuraFlowTransformer2DModel",),
)
