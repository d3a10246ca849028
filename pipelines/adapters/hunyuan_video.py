"""HunyuanVideo (diffusers ``HunyuanVideoTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    FlowPath,
    FrameLayer,
    FrameMixing,
    Guidance,
    JointTokens,
    LayerKind,
    Path,
    Rotary,
    TiledDecoder,
    VideoLayout,
    attention_names,
    self_attentions,
    separable,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class HunyuanVideoLayout(VideoLayout):
    """Plain latents; rotary positions follow the shape.

    Image to video appends a clean picture and a mask as channels, or puts it in the place of the first frame.
    """

    guidance = Guidance.EMBEDDED
    even_sigmas = True

    @override
    def channels(self, pipe: Any, count: int) -> Channels:
        """Latents, the picture's, mask."""
        noisy: int = pipe.transformer.config.out_channels
        return Channels.leading(noisy, slice(2 * noisy, max(2 * noisy, count)))

    @override
    def clean_frames(self, pipe: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        """The first one, for models that replace its tokens."""
        latents: Tensor = kwargs[self.latents]
        if pipe.transformer.config.image_condition_type != "token_replace":
            return None
        first = torch.arange(latents.shape[2], device=latents.device) == 0
        return first.expand(len(latents), -1)

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()


class HunyuanVideoFrames(FrameMixing):
    """Joint attention in both kinds of blocks, text last."""

    text = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    joint = "last"
    scope = (10, 12)
    rotary_argument = "image_rotary_emb"

    @override
    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Joint attention and the rotary module."""
        yield FrameLayer("rope", LayerKind.ROTARY)
        yield from self_attentions(root, "transformer_blocks", "attn")
        yield from self_attentions(root, "single_transformer_blocks", "attn")

    @override
    def frame_free(self, root: nn.Module) -> frozenset[str]:
        """The token refiner looks at text only."""
        return frozenset(name for name in attention_names(root) if name.startswith("context_embedder."))

    @override
    def trained_frames(self, pipe: Any) -> int | None:
        """129 frames of video in the released model."""
        return 33

    @override
    def patch(self, pipe: Any) -> int:
        """``patch_size_t`` of the transformer."""
        size: int = pipe.transformer.config.patch_size_t
        return size

    @override
    def rotary(self, module: Any, inner: Any, bound: Mapping[str, Any], frames: int) -> Rotary:
        """One call with one spatial position, one with one frame."""
        x = bound["hidden_states"]
        side, each = module.patch_size, module.patch_size_t
        temporal = inner(x.new_empty(1, 1, 1, 1, 1).expand(1, 1, frames * each, side, side))
        return separable(temporal, inner(x[:1, :1, :each]), module.rope_dim[0])


_TOKENS = JointTokens(r"(single_)?transformer_blocks\.\d+\.attn", "after")

ADAPTERS = (
    Adapter(
        family="hunyuan-video",
        pipelines=("HunyuanVideoPipeline",),
        capabilities=(HunyuanVideoLayout(), _TOKENS, HunyuanVideoFrames(), TiledDecoder()),
        models=("HunyuanVideoTransformer3DModel",),
        refused={
            "HunyuanVideoFramepackPipeline": "it denoises next to a packed history of several resolutions"
        },
    ),
    Adapter(
        family="hunyuan-video-image",
        pipelines=("HunyuanVideoImageToVideoPipeline", "HunyuanSkyreelsImageToVideoPipeline"),
        capabilities=(HunyuanVideoLayout(), _TOKENS, TiledDecoder()),
        missing={FrameMixing: "its given picture belongs to the first clip alone"},
    ),
)
