"""EasyAnimate (diffusers ``EasyAnimateTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    FlowPath,
    JointTokens,
    LatentSize,
    Path,
    VideoLayout,
    resize_clean,
)
from hasten.pipelines.adapters.untried import RESIZING


class EasyAnimateLayout(VideoLayout):
    """Plain latents; clean ones and masks are arguments of their own. Rotary positions follow the shape."""

    resizing = RESIZING

    factor = "vae_spatial_compression_ratio"
    frame_factor = "vae_temporal_compression_ratio"

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """A mask and the masked video; latents of control frames."""
        changed: dict[str, Any] = {}
        inpaint, control = kwargs.get("inpaint_latents"), kwargs.get("control_latents")
        if inpaint is not None:
            masks = inpaint.shape[1] - pipe.vae.config.latent_channels
            changed["inpaint_latents"] = Channels(slice(0, 0), slice(0, masks)).fitted(inpaint, size)
        if control is not None:
            changed["control_latents"] = resize_clean(control, size)
        return changed


ADAPTER = Adapter(
    family="easyanimate",
    pipelines=("EasyAnimatePipeline", "EasyAnimateInpaintPipeline", "EasyAnimateControlPipeline"),
    capabilities=(EasyAnimateLayout(), JointTokens(r"transformer_blocks\.\d+\.attn1", "before")),
    models=("EasyAnimateTransformer3DModel",),
)
