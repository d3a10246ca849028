"""Hunyuan-DiT (diffusers ``HunyuanDiT2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    BlockOutputs,
    ControlNetwork,
    ImageLayout,
    LatentSize,
    Path,
    Pipeline,
    VariancePreservingPath,
)


class HunyuanDiTLayout(ImageLayout):
    """Plain latents; the output has a learned variance behind the noise.

    ``image_meta_size`` (original size, target size, crop) stays, as for Stable Diffusion XL.
    """

    controls = ("controlnet_block_samples",)

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """Rotary embeddings of the grid stretched over that of 512 pixels, as ``__call__`` makes them."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        transformer = pipe.transformer
        patch = transformer.config.patch_size
        grid = size.height // patch, size.width // patch
        rotary = get_2d_rotary_pos_embed(
            transformer.inner_dim // transformer.num_heads,
            get_resize_crop_region_for_grid(grid, 512 // 8 // patch),
            grid,
            device=kwargs[self.latents].device,
            output_type="pt",
        )
        return {"image_rotary_emb": rotary}

    @override
    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Multiples of 16; ``use_resolution_binning`` picks the nearest of the supported shapes."""
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import SUPPORTED_SHAPE, map_to_standard_shapes

        height, width = (side // 16 * 16 for side in super().call_pixels(pipe, arguments))
        if arguments.get("use_resolution_binning", True) and (height, width) not in SUPPORTED_SHAPE:
            width, height = map_to_standard_shapes(width, height)
        return int(height), int(width)


ADAPTER = Adapter(
    family="hunyuan-dit",
    pipelines=("HunyuanDiTPipeline", "HunyuanDiTControlNetPipeline", "HunyuanDiTPAGPipeline"),
    models=("HunyuanDiT2DModel",),
    capabilities=(
        HunyuanDiTLayout(),
        ControlNetwork(),
        AttentionTokens(r"blocks\.\d+\.attn1", warmup=0.2),
        BlockOutputs({"HunyuanDiTBlock": (0, None)}),
    ),
)
