"""Wan 2.1 and 2.2 (diffusers ``WanTransformer3DModel``): text to video, image to video, two experts, TI2V."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    CausalDecoder,
    Channels,
    FlowPath,
    FrameLayer,
    FrameMixing,
    Guidance,
    LatentSize,
    LayerKind,
    Path,
    Rotary,
    VideoLayout,
    attention_names,
    resize_clean,
    self_attentions,
    separable,
    unknown_size,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor, nn


class WanLayout(VideoLayout):
    """Plain latents; positions follow the shape.

    Image-to-video models append a mask and an encoded picture as channels; TI2V (``expand_timesteps``)
    instead puts the clean first frame among the latents and gives every token its own timestep.
    """

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Any, count: int) -> Channels:
        """Latents, one mask channel for each frame of a latent frame, the picture."""
        noisy: int = _expert(pipe).config.out_channels
        return Channels.leading(noisy, slice(noisy, max(noisy, count - noisy)))

    @override
    def expert_boundary(self, pipe: Any) -> float | None:
        """``boundary_ratio`` of the pipeline's configuration."""
        boundary: float | None = pipe.config.get("boundary_ratio")
        return boundary

    @override
    def call_frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """Frame numbers that don't fit are rounded to the next multiple plus one."""
        frames, step = arguments.get("num_frames"), pipe.vae_scale_factor_temporal
        if frames is None:
            return super().call_frames(pipe, arguments)
        return int((frames - 1) // step + 1 if frames % step == 1 else frames // step + 1)


class WanFrames(FrameMixing):
    """Full attention in ``blocks.*.attn1``; the rotary table is indexed by frame, 1,024 rows long."""

    scope = (6, 8)
    rotary_argument = "rotary_emb"
    text = ("encoder_hidden_states",)

    @override
    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Self-attention and the rotary table."""
        yield FrameLayer("rope", LayerKind.ROTARY)
        yield from self_attentions(root, "blocks", "attn1")

    @override
    def frame_free(self, root: nn.Module) -> frozenset[str]:
        """Attention to text and pictures."""
        return frozenset(name for name in attention_names(root) if name.endswith(".attn2"))

    @override
    def trained_frames(self, pipe: Any) -> int | None:
        """81 frames of video in the released models."""
        return 21

    @override
    def limit(self, pipe: Any) -> int | None:
        """Rows of the rotary table."""
        rows: int = _expert(pipe).config.rope_max_seq_len
        return rows

    @override
    def clip_arguments(
        self, pipe: Any, kwargs: Mapping[str, Any], clip: range, held: range, frames: int
    ) -> dict[str, Any]:
        """TI2V has a timestep per token, too."""
        changed = super().clip_arguments(pipe, kwargs, clip, held, frames)
        timestep = kwargs["timestep"]
        if timestep.ndim == 2:
            each = timestep.shape[1] // len(held)
            start = (clip.start - held.start) * each
            changed["timestep"] = timestep[:, start : start + len(clip) * each]
        return changed

    @override
    def rotary(self, module: Any, inner: Any, bound: Mapping[str, Any], frames: int) -> Rotary:
        """One call with one spatial position, one with one frame."""
        x = bound["hidden_states"]
        each, *sides = module.patch_size
        temporal = inner(x.new_empty(1, 1, 1, 1, 1).expand(1, 1, frames * each, *sides))
        return separable(_flat(temporal), _flat(inner(x[:1, :1, :each])), module.t_dim)

    @override
    def as_argument(self, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(1, T, 1, D)."""
        return table[0][None, :, None], table[1][None, :, None]


def _expert(pipe: Any) -> Any:
    """Either expert; one may be absent, and video-to-video pipelines never have the second."""
    return pipe.transformer_2 if pipe.transformer is None else pipe.transformer


def _flat(table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return table[0][0, :, 0], table[1][0, :, 0]


class VACELayout(WanLayout):
    """Control frames enter as clean latents of both sides of a mask, and the mask in blocks of 8x8 pixels."""

    resizing = RESIZING

    @override
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The mask's channels come last."""
        control = kwargs["control_hidden_states"]
        clean = 2 * _expert(pipe).config.out_channels
        channels = Channels(slice(0, 0), slice(clean, control.shape[1]), math.isqrt(control.shape[1] - clean))
        return {"control_hidden_states": channels.fitted(control, size)}

    @override
    def call_frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
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
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The pose shrinks with the picture."""
        return {"pose_hidden_states": resize_clean(kwargs["pose_hidden_states"], size)}

    @override
    def call_size(self, pipe: Any, arguments: Mapping[str, Any]) -> LatentSize:
        """The number of frames is that of a segment, with the picture in front."""
        raise unknown_size(pipe)


class AnyFlowLayout(WanLayout):
    """(B, F, C, H, W), told the time of every frame and the next one."""

    resizing = RESIZING

    fixed = "its denoiser is told the next timestep too, which has no counterpart at another resolution"

    @override
    def unpack(self, pipe: Any, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
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
_WHOLE = "its conditions belong to all frames of the video, which clips would have to share"

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
        pipelines=("ChronoEditPipeline", "LucyEditPipeline"),
        denoisers=("transformer", "transformer_2"),
        capabilities=(WanLayout(), _TOKENS, CausalDecoder()),
        missing={FrameMixing: _WHOLE},
    ),
    Adapter(
        family="wan-vace",
        pipelines=("WanVACEPipeline",),
        denoisers=("transformer", "transformer_2"),
        capabilities=(VACELayout(), _TOKENS, CausalDecoder()),
        missing={FrameMixing: _WHOLE},
    ),
    Adapter(
        family="wan-animate",
        pipelines=("WanAnimatePipeline",),
        capabilities=(AnimateLayout(), _TOKENS, CausalDecoder()),
        missing={FrameMixing: _WHOLE},
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
