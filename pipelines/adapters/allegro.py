"""Allegro (diffusers ``AllegroTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    LatentSize,
    Path,
    Pipeline,
    Rotary,
    VariancePreservingPath,
    VideoLayout,
    VideoTokens,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor


class AllegroLayout(VideoLayout):
    """Plain latents; rotary positions are an argument."""

    resizing = RESIZING
    frame_factor = ""  # its autoencoder makes four frames of every latent frame

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The pipeline's own maker."""
        height, width = self.pixels(pipe, size)
        device = kwargs[self.latents].device
        maker = pipe._prepare_rotary_positional_embeddings
        return {"image_rotary_emb": maker(len(kwargs[self.latents]), height, width, size.frames, device)}

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_height`` and ``sample_width`` of the transformer."""
        config, factor = pipe.transformer.config, pipe.vae_scale_factor_spatial
        return config.sample_height * factor, config.sample_width * factor

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """An even number has no frame counted apart."""
        step: int = pipe.vae_scale_factor_temporal
        frames: int = arguments.get("num_frames") or pipe.transformer.config.sample_frames * step
        return -(-frames // step) if frames % 2 == 0 else -(-(frames - 1) // step) + 1


class AllegroFrames(VideoTokens):
    """Rotary embeddings come from the pipeline: a table and positions in it for each of three thirds of channels."""

    scope = (6, 8)
    text = ("encoder_hidden_states", "encoder_attention_mask")
    rope = None

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """88 frames of video in the released model."""
        return 22

    @override
    def given_rotary(self, pipe: Pipeline, kwargs: Mapping[str, Any], frames: int) -> Rotary | None:
        """Made again for all frames."""
        latents = kwargs[self.latents_argument(kwargs)]
        height, width = (side * pipe.vae_scale_factor_spatial for side in latents.shape[3:])
        made = pipe._prepare_rotary_positional_embeddings(len(latents), height, width, frames, latents.device)
        thirds = [[table[at.flatten()] for table in tables] for tables, at in zip(*made, strict=True)]
        cos, sin = (torch.cat(tables, 1) for tables in zip(*thirds, strict=True))
        each, channels = len(cos) // frames, torch.arange(cos.shape[1], device=cos.device)
        first = channels < cos.shape[1] // 3
        return Rotary((cos[::each], sin[::each]), (cos[:each], sin[:each]), first, halves=3)

    @override
    def as_argument(self, table: tuple[Tensor, Tensor]) -> Any:
        """Each token's own rows, in order."""
        thirds = tuple(zip(*(t.chunk(3, 1) for t in table), strict=True))
        order = torch.arange(len(table[0]), device=table[0].device)[None]
        return thirds, (order, order, order)


ADAPTER = Adapter(
    family="allegro",
    pipelines=("AllegroPipeline",),
    capabilities=(AllegroLayout(), AttentionTokens(r"transformer_blocks\.\d+\.attn1"), AllegroFrames()),
    models=("AllegroTransformer3DModel",),
)
