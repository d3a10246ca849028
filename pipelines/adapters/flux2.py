"""FLUX.2 dev and Klein (diffusers ``Flux2Transformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hasten.extend import Adapter, LatentSize, Pipeline, unknown_size
from hasten.pipelines.adapters.flux import FluxLayout, FluxTokens

if TYPE_CHECKING:
    from torch import Tensor


class Flux2Layout(FluxLayout):
    """FLUX.1's layout with four id axes and ids for every sample; references are numbered from 10 upwards.

    The autoencoder's statistics are per channel of a packed token, so unpacked neighbours differ slightly in
    scale.
    """

    @override
    def given_size(self, latents: Tensor) -> LatentSize:
        """The pipeline takes latents as (B, 4C, H/2, W/2)."""
        return LatentSize(2 * latents.shape[-2], 2 * latents.shape[-1])

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """A given image decides, after a resize that depends on its area."""
        if arguments.get("image") is not None:
            raise unknown_size(pipe)
        return super().default_pixels(pipe, arguments)

    @override
    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Where Klein inpaints, the picture decides, whatever ``height`` and ``width`` say."""
        image = arguments.get("image")
        if image is None or arguments.get("mask_image") is None:
            return super().call_pixels(pipe, arguments)
        height, width = pipe._get_raw_image_size(image[0] if isinstance(image, list) else image)
        if height * width > _LARGEST:
            raise unknown_size(pipe)
        return height, width


_LARGEST = 1024 * 1024
"""Pixels of a picture above which the pipeline shrinks it."""

ADAPTER = Adapter(
    family="flux2",
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
    capabilities=(Flux2Layout(), FluxTokens(r"(single_)?transformer_blocks\.\d+\.attn", "before")),
    models=("Flux2Transformer2DModel",),
    refused={"Flux2KleinKVPipeline": "it caches the reference tokens of the first step for the later ones"},
)
