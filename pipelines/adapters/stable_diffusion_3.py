"""Stable Diffusion 3 and 3.5 (diffusers ``SD3Transformer2DModel``).

The position embedding is a centre crop of one fixed grid: a smaller latent sees the middle of what a larger
one sees, at the same spacing. The model does that itself, from the shape.
"""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    Channels,
    ControlNetwork,
    FlowPath,
    ImageLayout,
    JointTokens,
    LatentSize,
    Path,
    Pipeline,
    ScannedUnits,
)


class StableDiffusion3Layout(ImageLayout):
    """Plain latents, told ``1000 t``; models for inpainting have a masked picture and a mask behind them."""

    controls = ("block_controlnet_hidden_states",)

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Latents, masked picture, mask."""
        noisy: int = pipe.transformer.config.out_channels
        return Channels.leading(noisy, slice(2 * noisy, max(2 * noisy, count)))

    joins_text = True

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def largest(self, pipe: Pipeline) -> LatentSize | None:
        """The grid that positions are cropped from."""
        config = pipe.transformer.config
        side = config.pos_embed_max_size * config.patch_size
        return LatentSize(side, side)


class LatentsControl(ControlNetwork):
    """The condition is a picture's latents, and for inpainting a mask behind them."""

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Whatever follows the latents is a mask."""
        latents: int = pipe.transformer.config.out_channels
        return Channels(slice(0, 0), slice(latents, max(latents, count)))


class StableDiffusion3Units(ScannedUnits):
    """Heads, feed-forward channels and blocks of ``SD3Transformer2DModel``."""

    @override
    def inputs(self, denoiser: Any, size: LatentSize, text: int, batch: int = 1) -> dict[str, Any]:
        """Latents, joint and pooled text embeddings."""
        config, weight = denoiser.config, denoiser.proj_out.weight
        like = {"device": weight.device, "dtype": weight.dtype}
        return {
            "hidden_states": torch.zeros(batch, config.in_channels, size.height, size.width, **like),
            "encoder_hidden_states": torch.zeros(batch, text, config.joint_attention_dim, **like),
            "pooled_projections": torch.zeros(batch, config.pooled_projection_dim, **like),
            "timestep": torch.full((batch,), 500.0, device=weight.device),
        }


_PERTURBED = "perturbed-attention guidance gives some layers a mask with one row for each query"

ADAPTERS = (
    Adapter(
        family="stable-diffusion-3",
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
        ),
        capabilities=(
            StableDiffusion3Layout(),
            LatentsControl(),
            JointTokens(r"transformer_blocks\.\d+\.attn", "after", alone=r"transformer_blocks\.\d+\.attn2"),
            StableDiffusion3Units(),
        ),
        models=("SD3Transformer2DModel",),
    ),
    Adapter(
        family="stable-diffusion-3-pag",
        pipelines=("StableDiffusion3PAGPipeline", "StableDiffusion3PAGImg2ImgPipeline"),
        capabilities=(StableDiffusion3Layout(), StableDiffusion3Units()),
        missing={AttentionTokens: _PERTURBED},
    ),
)
