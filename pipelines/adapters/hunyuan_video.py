"""HunyuanVideo (diffusers ``HunyuanVideoTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    CacheDefaults,
    Channels,
    FlowPath,
    Guidance,
    JointTokens,
    Path,
    Pipeline,
    TiledDecoder,
    VideoLayout,
    VideoTokens,
)

if TYPE_CHECKING:
    from torch import Tensor


class HunyuanVideoLayout(VideoLayout):
    """Plain latents; rotary positions follow the shape.

    Image to video appends a clean picture and a mask as channels, or puts it in the place of the first frame.
    """

    guidance = Guidance.EMBEDDED
    even_sigmas = True

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Latents, the picture's, mask."""
        noisy: int = pipe.transformer.config.out_channels
        return Channels.leading(noisy, slice(2 * noisy, max(2 * noisy, count)))

    @override
    def clean_frames(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> Tensor | None:
        """The first one, for models that replace its tokens."""
        latents: Tensor = kwargs[self.latents]
        if pipe.transformer.config.image_condition_type != "token_replace":
            return None
        first = torch.arange(latents.shape[2], device=latents.device) == 0
        return first.expand(len(latents), -1)

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()


class HunyuanVideoFrames(VideoTokens):
    """Joint attention in both kinds of blocks, text last."""

    text = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    joint = "last"
    scope = (10, 12)
    blocks: ClassVar = {"transformer_blocks": "attn", "single_transformer_blocks": "attn"}
    elsewhere = r"^context_embedder\."

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """129 frames of video in the released model."""
        return 33


class HunyuanVideoImageFrames(HunyuanVideoFrames):
    """The given picture is in the condition channels of the first frame."""

    @override
    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Models that put the picture among the latents step it apart."""
        if pipe.transformer.config.image_condition_type == "token_replace":
            return "the tokens of its given picture are stepped apart from those of the other frames"
        return super().refusal(pipe, arguments)

    @override
    def clip_arguments(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], clip: range, held: range, frames: int
    ) -> dict[str, Any]:
        """The pipeline puts the picture in front of the frames of every process; only the first one keeps it."""
        changed = super().clip_arguments(pipe, kwargs, clip, held, frames)
        if 0 < held.start == clip.start:
            name = self.latents_argument(kwargs)
            changed[name] = changed[name].clone()
            changed[name][:, pipe.transformer.config.out_channels :, :1] = 0
        return changed


_TOKENS = JointTokens(r"(single_)?transformer_blocks\.\d+\.attn", "after")
_CACHE = CacheDefaults(0.025, "default of ParaAttention")

ADAPTERS = (
    Adapter(
        family="hunyuan-video",
        pipelines=("HunyuanVideoPipeline",),
        capabilities=(HunyuanVideoLayout(), _TOKENS, HunyuanVideoFrames(), TiledDecoder(), _CACHE),
        models=("HunyuanVideoTransformer3DModel",),
        refused={
            "HunyuanVideoFramepackPipeline": "it denoises next to a packed history of several resolutions"
        },
    ),
    Adapter(
        family="hunyuan-video-skyreels",
        pipelines=("HunyuanSkyreelsImageToVideoPipeline",),
        capabilities=(HunyuanVideoLayout(), _TOKENS, HunyuanVideoFrames(), TiledDecoder(), _CACHE),
    ),
    # Its pipeline drops the frames of the picture after the last step, so it decodes itself.
    Adapter(
        family="hunyuan-video-image",
        pipelines=("HunyuanVideoImageToVideoPipeline",),
        capabilities=(HunyuanVideoLayout(), _TOKENS, HunyuanVideoImageFrames(), _CACHE),
    ),
)
