"""AnimateDiff (diffusers ``UNetMotionModel``): Stable Diffusion with temporal transformers between its "
"layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hasten.extend import (
    Adapter,
    ControlNetwork,
    FrameAxis,
    FrameLayer,
    FrameMixing,
    LayerKind,
    PictureDecoder,
    Pipeline,
    UNetTokens,
    attention_names,
)
from hasten.pipelines.adapters.stable_diffusion import CONTROLS
from hasten.pipelines.adapters.text_to_video import TextToVideoLayout, temporal_transformer

if TYPE_CHECKING:
    from torch import nn


class AnimateDiffLayout(TextToVideoLayout):
    """Control features are maps with frames in the batch."""

    controls = CONTROLS

    @override
    def resizing_refusal(self, pipe: Pipeline) -> str | None:
        """Videos are stepped whole here, but the control network gets its pictures at one size."""
        return None if getattr(pipe, "controlnet", None) is None else "its control pictures have one size"


class AnimateDiffControl(ControlNetwork):
    """One picture for each frame, or for a few of them and a mask that tells which."""

    masks = ("conditioning_mask",)


_MERGED = FrameAxis(0, merged=True)


class AnimateDiffFrames(FrameMixing):
    """Temporal transformers with a table of sine positions, 32 entries long in the released motion modules.

    Features of control networks have frames in the batch.
    """

    along: ClassVar = {"down_block_additional_residuals": _MERGED, "mid_block_additional_residual": _MERGED}
    global_share = 1.0

    @override
    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Norm, positions and both self-attentions of every motion module."""
        for name, module in root.named_modules():
            if type(module).__name__ != "AnimateDiffTransformer3D":
                continue
            yield from temporal_transformer(name, module)
            for below, child in module.named_modules():
                if type(child).__name__ == "SinusoidalPositionalEmbedding":
                    yield FrameLayer(f"{name}.{below}", LayerKind.POSITIONS)

    @override
    def frame_free(self, root: nn.Module) -> frozenset[str]:
        """Everything outside of motion modules."""
        return attention_names(root) - {
            layer.name for layer in self.layers(root) if layer.kind is LayerKind.TEMPORAL
        }

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """The released motion modules were trained on 16 frames."""
        return 16

    @override
    def limit(self, pipe: Pipeline) -> int | None:
        """Entries of the table."""
        length: int = pipe.unet.config.motion_max_seq_length
        return length

    @override
    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Both need the whole video at once."""
        for name in ("free_init", "free_noise"):
            if getattr(pipe, f"{name}_enabled", False):
                return f"{name} needs the whole video at once; call pipe.disable_{name}()"
        if (
            arguments.get("ip_adapter_image") is not None
            or arguments.get("ip_adapter_image_embeds") is not None
        ):
            return "IP-Adapter pictures are repeated for every frame inside the denoiser, which was not tried"
        return None

    @override
    def clip_arguments(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], clip: range, held: range, frames: int
    ) -> dict[str, Any]:
        """The pipeline repeats the text for every frame of the video, or of the latents."""
        changed = super().clip_arguments(pipe, kwargs, clip, held, frames)
        text = kwargs["encoder_hidden_states"]
        part = range(clip.start - held.start, clip.stop - held.start)
        batch = len(kwargs[self.latents_argument(kwargs)])
        for count, own in ((frames, clip), (len(held), part)):
            if len(text) == batch * count:
                changed["encoder_hidden_states"] = _MERGED.take(text, count, own)
                break
        return changed

    @override
    def positions(self, module: nn.Module, bound: Mapping[str, Any], clip: range, frames: int) -> Any:
        """The clip's rows of the table. Beyond its end the technique anchors positions anew, and nothing is added."""
        table: Any = module.pe
        if frames > table.shape[1]:
            return bound["x"]
        return bound["x"] + table[:, clip.start : clip.stop]


class ControlledFrames(AnimateDiffFrames):
    """The control network gets pictures and text of all frames, and latents of this process."""

    beside: ClassVar = {"controlnet": {"controlnet_cond": _MERGED, "encoder_hidden_states": _MERGED}}


class RedrawnFrames(AnimateDiffFrames):
    """The text is repeated for the latents of this process, and only the pictures are those of all frames."""

    beside: ClassVar = {"controlnet": {"controlnet_cond": _MERGED}}


ADAPTERS = (
    Adapter(
        family="animatediff",
        pipelines=("AnimateDiffPipeline", "AnimateDiffSDXLPipeline", "AnimateDiffPAGPipeline"),
        denoisers=("unet",),
        capabilities=(AnimateDiffLayout(), UNetTokens(), AnimateDiffFrames(), PictureDecoder()),
    ),
    Adapter(
        family="animatediff-controlled",
        pipelines=("AnimateDiffControlNetPipeline",),
        denoisers=("unet",),
        capabilities=(
            AnimateDiffLayout(),
            AnimateDiffControl(),
            UNetTokens(),
            ControlledFrames(),
            PictureDecoder(),
        ),
    ),
    Adapter(
        family="animatediff-sparse",
        pipelines=("AnimateDiffSparseControlNetPipeline",),
        denoisers=("unet",),
        capabilities=(AnimateDiffLayout(), AnimateDiffControl(), UNetTokens(), PictureDecoder()),
        missing={FrameMixing: "its control network mixes frames, too, and is not one of the denoisers"},
    ),
    Adapter(
        family="animatediff-video",
        pipelines=("AnimateDiffVideoToVideoPipeline",),
        denoisers=("unet",),
        capabilities=(AnimateDiffLayout(), UNetTokens(), RedrawnFrames(), PictureDecoder()),
    ),
    Adapter(
        family="animatediff-video-controlled",
        pipelines=("AnimateDiffVideoToVideoControlNetPipeline",),
        denoisers=("unet",),
        capabilities=(
            AnimateDiffLayout(),
            AnimateDiffControl(),
            UNetTokens(),
            RedrawnFrames(),
            PictureDecoder(),
        ),
    ),
)
