"""LTX-Video (diffusers ``LTXVideoTransformer3DModel``)."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from hasten.pipelines.adapters._base import Adapter
from hasten.pipelines.adapters._layouts import TokenLayout
from hasten.pipelines.adapters._paths import FlowPath, Path
from hasten.pipelines.adapters._tokens import AttentionTokens


class LTXLayout(TokenLayout):
    """One token per latent pixel; image to video has the clean first frame among them, at timestep 0."""

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()


ADAPTER = Adapter(
    family="ltx",
    pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
    capabilities=(LTXLayout(), AttentionTokens(r"transformer_blocks\.\d+\.attn1")),
    refused={
        "LTXConditionPipeline": "its condition frames are extra tokens with strengths of their own",
        "LTXI2VLongMultiPromptPipeline": "its condition frames are extra tokens with strengths of their own",
    },
)
