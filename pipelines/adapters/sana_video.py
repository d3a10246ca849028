"""SANA-Video (diffusers ``SanaVideoTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    FlowPath,
    FrameMixing,
    Path,
    Pipeline,
    VideoLayout,
)
from hasten.pipelines.adapters.sana import LINEAR
from hasten.pipelines.adapters.untried import RESIZING


class SanaVideoLayout(VideoLayout):
    """Plain latents; image to video gives a time per token, 0 for those of the picture."""

    resizing = RESIZING

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """Called ``frames`` here."""
        return super().call_frames(pipe, {**arguments, "num_frames": arguments["frames"]})


ADAPTER = Adapter(
    family="sana-video",
    pipelines=("SanaVideoPipeline", "SanaImageToVideoPipeline"),
    capabilities=(SanaVideoLayout(),),
    models=("SanaVideoTransformer3DModel",),
    missing={AttentionTokens: LINEAR, FrameMixing: "its linear attention keeps one sum over all frames"},
)
