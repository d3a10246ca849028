"""CogVideoX 2B, 5B and 1.5 (diffusers ``CogVideoXTransformer3DModel``)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hasten.extend import (
    Adapter,
    CacheDefaults,
    Channels,
    ChunkedDecoder,
    FrameAxis,
    FrameLayer,
    FrameMixing,
    JointTokens,
    LatentSize,
    LayerKind,
    Path,
    Pipeline,
    Rotary,
    VariancePreservingPath,
    VideoLayout,
    self_attentions,
    separable,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class CogVideoXLayout(VideoLayout):
    """Latents as (B, F, C, H, W).

    Sine positions follow the shape, rotary ones are an argument, learned ones are fixed.
    """

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Latents, then as many of a given picture or of control frames."""
        return Channels.leading(pipe.transformer.config.out_channels)

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``, which ends at zero signal."""
        return VariancePreservingPath()

    @override
    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Channels before frames."""
        result: Tensor = packed.transpose(1, 2)
        return result

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """Frames before channels."""
        return latent.transpose(1, 2)

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The pipeline's own maker of rotary embeddings: 1.0 and 1.5 differ."""
        if kwargs.get("image_rotary_emb") is None:
            return {}
        height, width = self.pixels(pipe, size)
        device = kwargs[self.latents].device
        rotary = pipe._prepare_rotary_positional_embeddings(height, width, size.frames, device)
        return {"image_rotary_emb": rotary}

    @override
    def given_size(self, latents: Tensor) -> LatentSize:
        """(B, F, C, H, W)."""
        return LatentSize(latents.shape[3], latents.shape[4], latents.shape[1])

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_height`` and ``sample_width`` of the transformer."""
        config, factor = pipe.transformer.config, pipe.vae_scale_factor_spatial
        return config.sample_height * factor, config.sample_width * factor

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """1.5 adds latent frames until its temporal patches are full."""
        config = pipe.transformer.config
        given = arguments.get("num_frames") or _control_frames(arguments)
        if given is None and arguments.get("video") is None:
            given = config.sample_frames
        frames = super().call_frames(pipe, {**arguments, "num_frames": given}) or 1
        patch = config.patch_size_t or 1
        return -(-frames // patch) * patch

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """The transformer raises for another extent if its positions were learned."""
        if pipe.transformer.config.use_learned_positional_embeddings:
            return "its position embeddings are learned for one latent size"
        return super().refusal(pipe)


def _control_frames(arguments: Mapping[str, Any]) -> int | None:
    """Frames of a control video: a list, a list of lists, or (B, F, C, H, W), of pictures or already encoded."""
    video = arguments.get("control_video")
    if video is not None:
        return len(video[0] if hasattr(video[0], "__len__") else video)
    latents = arguments.get("control_video_latents")
    return None if latents is None else int(latents.size(2))


class CogVideoXFrames(FrameMixing):
    """Joint attention, text first. Rotary embeddings come from the pipeline, sine positions from the
    patch embedding."""

    latents = FrameAxis(1)
    sample = FrameAxis(1)
    joint = "first"
    scope = (4, 4)
    rotary_argument = "image_rotary_emb"

    @override
    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Joint attention, and the patch embedding where it adds positions."""
        embedding: Any = root.get_submodule("patch_embed")
        if embedding.use_positional_embeddings or embedding.use_learned_positional_embeddings:
            yield FrameLayer("patch_embed", LayerKind.POSITIONS)
        yield from self_attentions(root, "transformer_blocks", "attn1")

    @override
    def frame_free(self, root: nn.Module) -> frozenset[str]:
        """None: there is no other attention."""
        return frozenset()

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """``sample_frames`` of the transformer."""
        config = pipe.transformer.config
        latent: int = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        return latent // (config.patch_size_t or 1)

    @override
    def patch(self, pipe: Pipeline) -> int:
        """``patch_size_t`` of 1.5."""
        size: int = pipe.transformer.config.patch_size_t or 1
        return size

    @override
    def given_rotary(self, pipe: Pipeline, kwargs: Mapping[str, Any], frames: int) -> Rotary | None:
        """The pipeline made them for this rank's frames; made again for all, as a temporal and a spatial table."""
        if kwargs.get("image_rotary_emb") is None:
            return None
        *_, height, width = kwargs[self.latents_argument(kwargs)].shape
        factor, device = pipe.vae_scale_factor_spatial, kwargs["image_rotary_emb"][0].device
        latent = frames * self.patch(pipe)
        cos, sin = pipe._prepare_rotary_positional_embeddings(height * factor, width * factor, latent, device)
        each = len(cos) // frames
        return separable((cos[::each], sin[::each]), (cos[:each], sin[:each]), cos.shape[1] // 4)

    @override
    def positions(self, module: nn.Module, bound: Mapping[str, Any], clip: range, frames: int) -> Any:
        """The embedding without positions, plus the rows of the clip."""
        embedding: Any = copy.copy(module)
        embedding.use_positional_embeddings = embedding.use_learned_positional_embeddings = False
        tokens = embedding(bound["text_embeds"], bound["image_embeds"])
        *_, height, width = bound["image_embeds"].shape
        pixels = (frames * (embedding.patch_size_t or 1) - 1) * embedding.temporal_compression_ratio + 1
        if (height, width, pixels) == (
            embedding.sample_height,
            embedding.sample_width,
            embedding.sample_frames,
        ):
            table = embedding.pos_embedding
        else:
            table = embedding._get_positional_embeddings(height, width, pixels, device=tokens.device)
        rows = table[:, embedding.max_text_seq_length :].unflatten(1, (frames, -1))[:, clip.start : clip.stop]
        text = bound["text_embeds"].shape[1]
        tokens[:, text:] += rows.flatten(1, 2).to(tokens.dtype)
        return tokens


class CogVideoXControlFrames(CogVideoXFrames):
    """Latents of control frames are channels before frames when the pipeline encodes them."""

    prepared: ClassVar = {"prepare_latents": None, "prepare_control_latents": FrameAxis(2)}


_TOKENS = JointTokens(r"transformer_blocks\.\d+\.attn1", "before", warmup=0.3)
_CACHE = CacheDefaults(0.025, "default of ParaAttention")

ADAPTERS = (
    Adapter(
        family="cogvideox",
        pipelines=("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline", "CogVideoXImageToVideoPipeline"),
        capabilities=(CogVideoXLayout(), _TOKENS, CogVideoXFrames(), ChunkedDecoder(), _CACHE),
        models=("CogVideoXTransformer3DModel",),
    ),
    Adapter(
        family="cogvideox-control",
        pipelines=("CogVideoXFunControlPipeline",),
        capabilities=(CogVideoXLayout(), _TOKENS, CogVideoXControlFrames(), ChunkedDecoder(), _CACHE),
    ),
)
