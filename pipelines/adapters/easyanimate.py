"""EasyAnimate (diffusers ``EasyAnimateTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    FlowPath,
    FrameAxis,
    FrameMixing,
    JointTokens,
    LatentSize,
    Path,
    Pipeline,
    Rotary,
    VideoLayout,
    VideoTokens,
    resize_clean,
    separable,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor


class EasyAnimateLayout(VideoLayout):
    """Plain latents; clean ones and masks are arguments of their own. Rotary positions follow the shape."""

    resizing = RESIZING

    factor = "vae_spatial_compression_ratio"
    frame_factor = "vae_temporal_compression_ratio"

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """A mask and the masked video; latents of control frames."""
        changed: dict[str, Any] = {}
        inpaint, control = kwargs.get("inpaint_latents"), kwargs.get("control_latents")
        if inpaint is not None:
            masks = inpaint.shape[1] - pipe.vae.config.latent_channels
            changed["inpaint_latents"] = Channels(slice(0, 0), slice(0, masks)).fitted(inpaint, size)
        if control is not None:
            changed["control_latents"] = resize_clean(control, size)
        return changed


class EasyAnimateFrames(VideoTokens):
    """Joint attention, text first; a patch is one frame."""

    text = ("encoder_hidden_states", "encoder_hidden_states_t5")
    joint = "first"
    scope = (4, 4)
    rope = "rope_embedding"

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """49 frames of video in the released models."""
        return 13

    @override
    def patch_sizes(self, module: Any) -> tuple[int, int, int]:
        """Frames have no patches."""
        return 1, module.patch_size, module.patch_size

    @override
    def joined(self, module: Any, temporal: tuple[Tensor, Tensor], spatial: tuple[Tensor, Tensor]) -> Rotary:
        """A quarter of the channels is temporal."""
        return separable(temporal, spatial, temporal[0].shape[1] // 4)


class EasyAnimateControlFrames(EasyAnimateFrames):
    """Latents of control frames are an argument."""

    along: ClassVar = {"control_latents": FrameAxis(2)}
    prepared: ClassVar = {"prepare_latents": None, "prepare_control_latents": None}

    @override
    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Of the conditions, only control frames are divided."""
        for name in ("ref_image", "control_camera_video"):
            if arguments.get(name) is not None:
                return f"{name} is fitted to the frames of one process only; leave it out"
        return super().refusal(pipe, arguments)


_TOKENS = JointTokens(r"transformer_blocks\.\d+\.attn1", "before")

ADAPTERS = (
    Adapter(
        family="easyanimate",
        pipelines=("EasyAnimatePipeline",),
        capabilities=(EasyAnimateLayout(), _TOKENS, EasyAnimateFrames()),
        models=("EasyAnimateTransformer3DModel",),
    ),
    Adapter(
        family="easyanimate-control",
        pipelines=("EasyAnimateControlPipeline",),
        capabilities=(EasyAnimateLayout(), _TOKENS, EasyAnimateControlFrames()),
    ),
    Adapter(
        family="easyanimate-inpaint",
        pipelines=("EasyAnimateInpaintPipeline",),
        capabilities=(EasyAnimateLayout(), _TOKENS),
        missing={
            FrameMixing: "its loop fits the mask of the whole video to the latents of one process, "
            "and mixes given latents in after every step"
        },
    ),
)
