"""Chroma (diffusers ``ChromaTransformer2DModel``): FLUX.1 without embedded guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import Adapter, Guidance, LatentSize
from hasten.pipelines.adapters.flux import FluxLayout, FluxTokens

if TYPE_CHECKING:
    from torch import Tensor


class ChromaLayout(FluxLayout):
    """FLUX.1's layout with a mask over text and image tokens; image tokens are all let through."""

    guidance = Guidance.SEQUENTIAL

    @override
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
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

    @override
    def call_refusal(self, pipe: Any, arguments: Mapping[str, Any]) -> str | None:
        """Numbers 0 and 1 hide no text token: they add a bias, which sparse kernels do not support."""
        masks = [arguments.get(f"{side}prompt_attention_mask") for side in ("", "negative_")]
        given = [mask for mask in masks if mask is not None]
        boolean = type(pipe).__name__ == "ChromaPipeline" and all(mask.dtype == torch.bool for mask in given)
        if given and (boolean or all(bool(mask.all()) for mask in given)):
            return None
        return (
            f"{type(pipe).__name__} adds its text mask to the attention scores as numbers, a bias that sparse "
            f"attention does not support; pass prompt_embeds (and negative_prompt_embeds) cut to the length of the "
            f"text, with attention masks of ones"
        )


ADAPTER = Adapter(
    family="chroma",
    pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    capabilities=(ChromaLayout(), ChromaTokens(r"(single_)?transformer_blocks\.\d+\.attn", "before")),
    models=("ChromaTransformer2DModel",),
)
