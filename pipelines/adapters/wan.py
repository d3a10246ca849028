"""Wan 2.1 and 2.2 (diffusers ``WanTransformer3DModel``): text to video, image to video, two experts, TI2V."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    CausalDecoder,
    Channels,
    FlowPath,
    FrameAxis,
    FrameMixing,
    Guidance,
    LatentSize,
    Path,
    Pipeline,
    Rotary,
    VideoLayout,
    VideoTokens,
    resize_clean,
    separable,
    unknown_size,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor


class WanLayout(VideoLayout):
    """Plain latents; positions follow the shape.

    Image-to-video models append a mask and an encoded picture as channels; TI2V (``expand_timesteps``)
    instead puts the clean first frame among the latents and gives every token its own timestep.
    """

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Latents, one mask channel for each frame of a latent frame, the picture."""
        noisy: int = _expert(pipe).config.out_channels
        return Channels.leading(noisy, slice(noisy, max(noisy, count - noisy)))

    @override
    def expert_boundary(self, pipe: Pipeline) -> float | None:
        """``boundary_ratio`` of the pipeline's configuration."""
        boundary: float | None = pipe.config.get("boundary_ratio")
        return boundary

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """Frame numbers that don't fit are rounded to the next multiple plus one."""
        frames, step = arguments.get("num_frames"), pipe.vae_scale_factor_temporal
        if frames is None:
            return super().call_frames(pipe, arguments)
        return int((frames - 1) // step + 1 if frames % step == 1 else frames // step + 1)


class WanFrames(VideoTokens):
    """Full attention in ``blocks.*.attn1``; the rotary table is indexed by frame, 1,024 rows long.

    TI2V has a timestep per token.
    """

    scope = (6, 8)
    blocks: ClassVar = {"blocks": "attn1"}
    rotary_argument = "rotary_emb"
    along: ClassVar = {"timestep": FrameAxis(1)}

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """81 frames of video in the released models."""
        return 21

    @override
    def limit(self, pipe: Pipeline) -> int | None:
        """Rows of the rotary table."""
        rows: int = _expert(pipe).config.rope_max_seq_len
        return rows

    @override
    def patch_sizes(self, module: Any) -> tuple[int, int, int]:
        """``patch_size``."""
        sizes: tuple[int, int, int] = module.patch_size
        return sizes

    @override
    def joined(self, module: Any, temporal: tuple[Tensor, Tensor], spatial: tuple[Tensor, Tensor]) -> Rotary:
        """Temporal channels come first."""
        return separable(_flat(temporal), _flat(spatial), module.t_dim)

    @override
    def as_argument(self, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(1, T, 1, D)."""
        return table[0][None, :, None], table[1][None, :, None]


def _expert(pipe: Pipeline) -> Any:
    """Either expert; one may be absent, and video-to-video pipelines never have the second."""
    return pipe.transformer_2 if pipe.transformer is None else pipe.transformer


def _flat(table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return table[0][0, :, 0], table[1][0, :, 0]


class VACEFrames(WanFrames):
    """Control frames have blocks of their own, which attend to the tokens of all frames, too."""

    blocks: ClassVar = {"blocks": "attn1", "vace_blocks": "attn1"}
    whole: ClassVar = {"control_hidden_states": FrameAxis(2)}

    @override
    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Reference pictures are frames that the pipeline takes away before it decodes."""
        if arguments.get("reference_images") is not None:
            return (
                "reference_images are frames in front of the video, which belong to no clip; leave them out"
            )
        return super().refusal(pipe, arguments)


class VACELayout(WanLayout):
    """Control frames enter as clean latents of both sides of a mask, and the mask in blocks of 8x8 pixels."""

    resizing = RESIZING

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The mask's channels come last."""
        control = kwargs["control_hidden_states"]
        clean = 2 * _expert(pipe).config.out_channels
        channels = Channels(slice(0, 0), slice(clean, control.shape[1]), math.isqrt(control.shape[1] - clean))
        return {"control_hidden_states": channels.fitted(control, size)}

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """Reference pictures are frames in front of the video."""
        frames = super().call_frames(pipe, arguments)
        given = arguments.get("reference_images")
        if given is None or frames is None:
            return frames
        first = given[0] if isinstance(given, (list, tuple)) else given
        return frames + (len(first) if isinstance(first, (list, tuple)) else 1)


class AnimateLayout(WanLayout):
    """The pose is a video of clean latents; the face has a size of its own."""

    resizing = RESIZING

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The pose shrinks with the picture."""
        return {"pose_hidden_states": resize_clean(kwargs["pose_hidden_states"], size)}

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """The number of frames is that of a segment, with the picture in front."""
        raise unknown_size(pipe)


class AnyFlowLayout(WanLayout):
    """(B, F, C, H, W), told the time of every frame and the next one."""

    resizing = RESIZING

    fixed = "its denoiser is told the next timestep too, which has no counterpart at another resolution"

    @override
    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Channels before frames."""
        result: Tensor = packed.transpose(1, 2)
        return result

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """Frames before channels."""
        return latent.transpose(1, 2)


class ForcingLayout(WanLayout):
    """Frames may be at different times."""

    resizing = RESIZING

    fixed = "its frames are at different noise levels in one forward"


_TOKENS = AttentionTokens(r"(vace_)?blocks\.\d+\.attn1")

ADAPTERS = (
    Adapter(
        family="wan",
        pipelines=(
            "WanPipeline",
            "WanImageToVideoPipeline",
            "WanVideoToVideoPipeline",
            "SkyReelsV2Pipeline",
            "SkyReelsV2ImageToVideoPipeline",
        ),
        denoisers=("transformer", "transformer_2"),
        capabilities=(WanLayout(), _TOKENS, WanFrames(), CausalDecoder()),
        models=("WanTransformer3DModel", "SkyReelsV2Transformer3DModel"),
    ),
    Adapter(
        family="wan-edit",
        pipelines=("LucyEditPipeline",),
        denoisers=("transformer", "transformer_2"),
        capabilities=(WanLayout(), _TOKENS, WanFrames(), CausalDecoder()),
    ),
    Adapter(
        family="chrono-edit",
        pipelines=("ChronoEditPipeline",),
        denoisers=("transformer", "transformer_2"),
        capabilities=(WanLayout(), _TOKENS, CausalDecoder()),
        missing={FrameMixing: "it drops all frames but the first and the last in the middle of its loop"},
    ),
    Adapter(
        family="wan-vace",
        pipelines=("WanVACEPipeline",),
        denoisers=("transformer", "transformer_2"),
        capabilities=(VACELayout(), _TOKENS, VACEFrames(), CausalDecoder()),
    ),
    Adapter(
        family="wan-animate",
        pipelines=("WanAnimatePipeline",),
        capabilities=(AnimateLayout(), _TOKENS, CausalDecoder()),
        missing={
            FrameMixing: "it makes its video segment after segment, each from the end of the one before"
        },
    ),
    Adapter(
        family="skyreels-forcing",
        pipelines=(
            "SkyReelsV2DiffusionForcingPipeline",
            "SkyReelsV2DiffusionForcingImageToVideoPipeline",
            "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        ),
        capabilities=(ForcingLayout(), _TOKENS, CausalDecoder()),
        missing={FrameMixing: "its frames are at different noise levels in one forward"},
    ),
    Adapter(
        family="anyflow",
        pipelines=("AnyFlowPipeline",),
        capabilities=(AnyFlowLayout(), _TOKENS, CausalDecoder()),
        missing={FrameMixing: "its frames are at different noise levels in one forward"},
        refused={
            "AnyFlowFARPipeline": "its denoiser keeps keys and values of the chunks before the current one"
        },
    ),
)
