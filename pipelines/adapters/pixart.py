"""PixArt-alpha and PixArt-Sigma (diffusers ``PixArtTransformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    ImageLayout,
    LatentSize,
    Path,
    Pipeline,
    ScannedUnits,
    VariancePreservingPath,
)


class PixArtLayout(ImageLayout):
    """Plain latents; the output has a learned variance behind the noise. Positions follow the shape.

    Alpha's 1024-pixel model (``sample_size`` 128) is also told resolution and aspect ratio of the picture it
    makes.
    """

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """``added_cond_kwargs`` of the small picture, where the model takes them."""
        old = kwargs.get("added_cond_kwargs") or {}
        if old.get("resolution") is None:
            return {}
        height, width = self.pixels(pipe, size)
        resolution = torch.tensor([[height, width]]).to(old["resolution"]).expand_as(old["resolution"])
        ratio = torch.full_like(old["aspect_ratio"], height / width)
        return {"added_cond_kwargs": {**old, "resolution": resolution, "aspect_ratio": ratio}}

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_size`` of the transformer."""
        side: int = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        return side, side

    @override
    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``use_resolution_binning`` picks the nearest aspect ratio of the training set."""
        height, width = super().call_pixels(pipe, arguments)
        if not arguments.get("use_resolution_binning", True):
            return height, width
        return binned_pixels(pipe, height, width, _bins(pipe.transformer.config.sample_size))


def binned_pixels(
    pipe: Pipeline, height: int, width: int, bins: dict[str, list[float]] | None
) -> tuple[int, int]:
    """The training resolution nearest in aspect ratio, as the pipeline's image processor picks it."""
    if bins is None:  # the pipeline raises; let it
        return height, width
    height, width = pipe.image_processor.classify_height_width_bin(height, width, ratios=bins)
    return height, width


def _bins(sample_size: int) -> dict[str, list[float]] | None:
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

    table: dict[int, dict[str, list[float]]] = {
        256: sigma.ASPECT_RATIO_2048_BIN,
        128: alpha.ASPECT_RATIO_1024_BIN,
        64: alpha.ASPECT_RATIO_512_BIN,
        32: alpha.ASPECT_RATIO_256_BIN,
    }
    return table.get(sample_size)


class PixArtUnits(ScannedUnits):
    """Heads, feed-forward channels and blocks of ``PixArtTransformer2DModel``."""

    @override
    def inputs(self, denoiser: Any, size: LatentSize, text: int, batch: int = 1) -> dict[str, Any]:
        """Latents and text embeddings; pictures' sizes where the model asks for them."""
        config, weight = denoiser.config, denoiser.proj_out.weight
        like = {"device": weight.device, "dtype": weight.dtype}
        width = config.caption_channels or config.cross_attention_dim
        sizes = {"resolution": torch.zeros(batch, 2, **like), "aspect_ratio": torch.zeros(batch, 1, **like)}
        asked = denoiser.use_additional_conditions
        return {
            "hidden_states": torch.zeros(batch, config.in_channels, size.height, size.width, **like),
            "encoder_hidden_states": torch.zeros(batch, text, width, **like),
            "timestep": torch.full((batch,), 500, device=weight.device),
            "added_cond_kwargs": sizes if asked else {"resolution": None, "aspect_ratio": None},
        }


ADAPTER = Adapter(
    family="pixart",
    pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline"),
    capabilities=(
        PixArtLayout(),
        AttentionTokens(r"transformer_blocks\.\d+\.attn1", warmup=0.25),
        PixArtUnits(),
    ),
)
