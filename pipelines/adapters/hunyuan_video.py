"""HunyuanVideo (diffusers ``HunyuanVideoTransformer3DModel``)."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from hasten.pipelines.adapters._base import Adapter, Guidance
from hasten.pipelines.adapters._layouts import VideoLayout
from hasten.pipelines.adapters._paths import FlowPath, Path
from hasten.pipelines.adapters._tokens import JointTokens

_MIXED = "it mixes a clean picture into the noisy latents, and only the pipeline knows where"


class HunyuanVideoLayout(VideoLayout):
    """Plain latents; rotary positions follow the shape."""

    guidance = Guidance.EMBEDDED

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()


ADAPTER = Adapter(
    family="hunyuan-video",
    pipelines=("HunyuanVideoPipeline",),
    capabilities=(HunyuanVideoLayout(), JointTokens(r"(single_)?transformer_blocks\.\d+\.attn", "after")),
    refused={
        "HunyuanVideoImageToVideoPipeline": _MIXED,
        "HunyuanSkyreelsImageToVideoPipeline": _MIXED,
        "HunyuanVideoFramepackPipeline": "it denoises next to a packed history of several resolutions",
    },
)
