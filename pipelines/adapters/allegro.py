"""Allegro (diffusers ``AllegroTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    LatentSize,
    Path,
    VariancePreservingPath,
    VideoLayout,
)
from hasten.pipelines.adapters.untried import RESIZING


class AllegroLayout(VideoLayout):
    """Plain latents; rotary positions are an argument."""

    resizing = RESIZING

    @override
    def path(self, pipe: Any) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The pipeline's own maker."""
        height, width = self.pixels(pipe, size)
        device = kwargs[self.latents].device
        maker = pipe._prepare_rotary_positional_embeddings
        return {"image_rotary_emb": maker(len(kwargs[self.latents]), height, width, size.frames, device)}

    @override
    def default_pixels(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_height`` and ``sample_width`` of the transformer."""
        config, factor = pipe.transformer.config, pipe.vae_scale_factor_spatial
        return config.sample_height * factor, config.sample_width * factor

    @override
    def call_frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """An even number has no frame counted apart."""
        step: int = pipe.vae_scale_factor_temporal
        frames: int = arguments.get("num_frames") or pipe.transformer.config.sample_frames * step
        return -(-frames // step) if frames % 2 == 0 else -(-(frames - 1) // step) + 1


ADAPTER = Adapter(
    family="allegro",
    pipelines=("AllegroPipeline",),
    capabilities=(AllegroLayout(), AttentionTokens(r"transformer_blocks\.\d+\.attn1")),
    models=("AllegroTransformer3DModel",),
)
