"""Chroma (diffusers ``ChromaTransformer2DModel``): FLUX.1 without embedded guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import Adapter, Guidance, LatentSize, Pipeline
from hasten.pipelines.adapters.flux import FluxLayout, FluxTokens

if TYPE_CHECKING:
    from torch import Tensor


class ChromaLayout(FluxLayout):
    """FLUX.1's layout with a mask over text and image tokens; image tokens are all let through."""

    guidance = Guidance.SEQUENTIAL

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """Ids, and a mask of the new length."""
        changed = super().positions(pipe, kwargs, size)
        mask: Tensor | None = kwargs.get("attention_mask")
        if mask is not None:
            text = mask[:, : kwargs["txt_ids"].shape[-2]]
            image = torch.ones_like(mask[:, :1]).expand(-1, changed["img_ids"].shape[-2])
            changed["attention_mask"] = torch.cat([text, image], dim=1)
        return changed


class ChromaTokens(FluxTokens):
    """FLUX.1's, under a mask over pairs. The pipeline adds it to the scores, unless it is boolean."""

    paired_mask = True


ADAPTER = Adapter(
    family="chroma",
    pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    capabilities=(ChromaLayout(), ChromaTokens(r"(single_)?transformer_blocks\.\d+\.attn", "before")),
    models=("ChromaTransformer2DModel",),
)
