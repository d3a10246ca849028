"""ModelScope, ZeroScope and conversions of VideoCrafter2 (diffusers ``UNet3DConditionModel``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    FrameAxis,
    FrameLayer,
    FrameMixing,
    LatentSize,
    LayerKind,
    Path,
    PictureDecoder,
    Pipeline,
    UNetTokens,
    VariancePreservingPath,
    VideoLayout,
    attention_names,
)

if TYPE_CHECKING:
    from torch import nn


class TextToVideoLayout(VideoLayout):
    """Plain latents, as many frames as the video; any extent."""

    latents = "sample"
    factor = "vae_scale_factor"
    multiple = 1

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def resizing_refusal(self, pipe: Pipeline) -> str | None:
        """The scheduler sees pictures, not videos."""
        return "it folds frames into the batch before it steps"

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_size`` of the UNet, which may be a pair, or the given video's."""
        if arguments.get("video") is not None:
            frame = _one(arguments["video"])[0]
            frame = frame[None] if getattr(frame, "ndim", 0) == 3 else frame
            height, width = pipe.video_processor.get_default_height_width(frame)
            return int(height), int(width)
        side = pipe.unet.config.sample_size
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """The autoencoder works picture by picture."""
        frames: int = arguments.get("num_frames") or len(_one(arguments["video"]))
        return frames

    @override
    def given_size(self, latents: Any) -> LatentSize:
        """(B, C, F, H, W)."""
        return LatentSize(latents.shape[3], latents.shape[4], latents.shape[2])


def _one(video: Any) -> Any:
    """The first of a batch of videos, or the only one: frames as pictures, or (F, C, H, W)."""
    nested = isinstance(video, (list, tuple)) and (
        isinstance(video[0], (list, tuple)) or getattr(video[0], "ndim", 0) == 4
    )
    return video[0] if nested or getattr(video, "ndim", 0) == 5 else video


class UNet3DFrames(FrameMixing):
    """Temporal transformers and convolutions beside the spatial layers; no position embedding, so any length runs.

    The pipeline folds frames into the batch before it steps.
    """

    sample = FrameAxis(0, merged=True)
    global_share = 1.0

    @override
    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Norm and both self-attentions of temporal transformers; norms and convolutions of temporal stacks."""
        for name, module in root.named_modules():
            kind = type(module).__name__
            if kind == "TransformerTemporalModel":
                yield from temporal_transformer(name, module)
            elif kind == "TemporalConvLayer":
                for below, stack in module.named_children():
                    # Norm, activation, dropout, convolution.
                    convolution = f"{name}.{below}.{len(stack) - 1}"
                    yield FrameLayer(f"{name}.{below}.0", LayerKind.NORM, reader=convolution)
                    yield FrameLayer(convolution, LayerKind.CONV)

    @override
    def frame_free(self, root: nn.Module) -> frozenset[str]:
        """Everything outside of temporal transformers."""
        return attention_names(root) - {
            layer.name for layer in self.layers(root) if layer.kind is LayerKind.TEMPORAL
        }

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """ModelScope and VideoCrafter2 were trained on 16 frames, ZeroScope on 24."""
        return 16


def temporal_transformer(name: str, module: nn.Module) -> Iterator[FrameLayer]:
    """Layers of a ``TransformerTemporalModel`` or ``AnimateDiffTransformer3D``."""
    yield FrameLayer(f"{name}.norm", LayerKind.NORM)
    for below in sorted(attention_names(module)):
        yield FrameLayer(f"{name}.{below}", LayerKind.TEMPORAL)


ADAPTERS = (
    Adapter(
        family="text-to-video",
        pipelines=("TextToVideoSDPipeline", "VideoToVideoSDPipeline"),
        denoisers=("unet",),
        capabilities=(TextToVideoLayout(), UNetTokens(), UNet3DFrames(), PictureDecoder()),
    ),
)
