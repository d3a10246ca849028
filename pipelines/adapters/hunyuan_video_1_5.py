"""HunyuanVideo 1.5 (diffusers ``HunyuanVideo15Transformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from hasten.extend import (
    Adapter,
    BlockOutputs,
    Channels,
    FlowPath,
    Guidance,
    JointTokens,
    Path,
    Pipeline,
    VideoLayout,
    VideoTokens,
)


class HunyuanVideo15Layout(VideoLayout):
    """Latents, as many channels of an encoded picture (zero for text to video), and one mask channel."""

    guidance = Guidance.SEQUENTIAL
    even_sigmas = True
    multiple = 1

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Latents, as many of a picture, masks."""
        noisy: int = pipe.transformer.config.out_channels
        return Channels.leading(noisy, slice(2 * noisy, count))

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``target_size`` of the transformer in the given image's aspect ratio, or in 16:9."""
        image = arguments.get("image")
        columns, rows = pipe.default_aspect_ratio if image is None else image.size
        height, width = pipe.video_processor.calculate_default_height_width(rows, columns, pipe.target_size)
        return height, width

    @override
    def further_text(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int:
        """Those of the second encoder, and of the picture's, which are there without a picture as well."""
        embeds = arguments.get("prompt_embeds_2")
        second = pipe.tokenizer_2_max_length if embeds is None else len(embeds[0])
        return int(second + pipe.vision_num_semantic_tokens)

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """Mean-flow models are told two times; the second has no counterpart at another resolution."""
        if pipe.transformer.config.use_meanflow:
            return "its mean-flow denoiser is told the next timestep too"
        return super().refusal(pipe)


class HunyuanVideo15Tokens(JointTokens):
    """The video, then all text; hidden text tokens neither see nor are seen."""

    paired_mask = True


class HunyuanVideo15Frames(VideoTokens):
    """Joint attention; behind the video are tokens of a picture and of two texts."""

    text = (
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
    )
    joint = "last"
    scope = (10, 12)
    blocks: ClassVar = {"transformer_blocks": "attn"}
    elsewhere = r"^context_embedder\."
    prepared: ClassVar = {"prepare_latents": None, "prepare_cond_latents_and_mask": None}

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """121 frames of video in the released models."""
        return 31


ADAPTER = Adapter(
    family="hunyuan-video-1.5",
    pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    capabilities=(
        HunyuanVideo15Layout(),
        HunyuanVideo15Tokens(r"transformer_blocks\.\d+\.attn", "after"),
        HunyuanVideo15Frames(),
        BlockOutputs({"HunyuanVideo15TransformerBlock": (0, 1)}),
    ),
)
