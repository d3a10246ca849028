"""Wan 2.1 and 2.2 (diffusers ``WanTransformer3DModel``): text to video, image to video, two experts, TI2V."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    CausalDecoder,
    ConditionedVideoLayout,
    FlowPath,
    FrameLayer,
    FrameMixing,
    Guidance,
    LayerKind,
    Path,
    Rotary,
    attention_names,
    self_attentions,
    separable,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class WanLayout(ConditionedVideoLayout):
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
    def channels(self, pipe: Any) -> int:
        """``out_channels``; of two experts one may be absent."""
        count: int = _expert(pipe).config.out_channels
        return count

    @override
    def masks(self, conditions: int, channels: int) -> slice:
        """One mask channel for each frame of a latent frame, in front of the picture."""
        return slice(0, conditions - channels)

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
        return (frames - 1) // step + 1 if frames % step == 1 else frames // step + 1


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


ADAPTER = Adapter(
    family="wan",
    pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
    denoisers=("transformer", "transformer_2"),
    capabilities=(WanLayout(), AttentionTokens(r"blocks\.\d+\.attn1"), WanFrames(), CausalDecoder()),
    refused={
        "WanVACEPipeline": "its control latents enter the denoiser beside the video, at full size",
        "WanAnimatePipeline": "its pose and face features enter the denoiser beside the video, at full size",
    },
)
