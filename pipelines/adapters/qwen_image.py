"""Qwen-Image and Qwen-Image-Edit (diffusers ``QwenImageTransformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten._errors import UnsupportedError
from hasten.pipelines.adapters._base import Adapter, Guidance, LatentSize
from hasten.pipelines.adapters._layouts import PackedLayout
from hasten.pipelines.adapters._paths import FlowPath, Path
from hasten.pipelines.adapters.stable_diffusion import CONTROLLED


class QwenImageLayout(PackedLayout):
    """2x2-packed tokens; ``img_shapes`` lists (frames, rows, columns) per sample, the latents first, references after.

    The pipelines divide the timestep by 1000.
    """

    guidance = Guidance.SEQUENTIAL

    def path(self, pipe: Any) -> Path:  # noqa: ARG002
        """Rectified flow, told ``t``."""
        return FlowPath(scale=1.0)

    def grid(self, pipe: Any, kwargs: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        """From ``img_shapes``."""
        _, rows, columns = kwargs["img_shapes"][0][0]
        return rows, columns

    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:  # noqa: ARG002
        """``img_shapes`` with another first entry."""
        ours = (1, size.height // 2, size.width // 2)
        return {"img_shapes": [[ours, *references] for _, *references in kwargs["img_shapes"]]}

    def default_pixels(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Edit pipelines keep the image's aspect ratio."""
        if "Edit" in type(pipe).__name__:
            raise UnsupportedError(
                f"{type(pipe).__name__} takes its size from the given image; pass height and width to plan ahead"
            )
        return super().default_pixels(pipe, arguments)


ADAPTER = Adapter(
    family="qwen-image",
    pipelines=(
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
    ),
    capabilities=(QwenImageLayout(),),
    refused={
        "QwenImageEditInpaintPipeline": "it ignores height and width in favour of the image's",
        "QwenImageLayeredPipeline": "its latents are several layers in one token sequence",
        "QwenImage21Pipeline": "its denoiser keeps a cache of reference tokens between steps",
        "QwenImageControlNetPipeline": CONTROLLED,
        "QwenImageControlNetInpaintPipeline": CONTROLLED,
    },
)
