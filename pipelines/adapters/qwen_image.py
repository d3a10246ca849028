"""Qwen-Image and Qwen-Image-Edit (diffusers ``QwenImageTransformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    FlowPath,
    Guidance,
    JointTokens,
    LatentSize,
    PackedLayout,
    Path,
    Pipeline,
    ScannedUnits,
    unknown_size,
)
from hasten.pipelines.adapters.flux import SEVERAL
from hasten.pipelines.adapters.stable_diffusion_3 import LatentsControl

if TYPE_CHECKING:
    from torch import nn


class QwenImageLayout(PackedLayout):
    """2x2-packed tokens with ``img_shapes``, a list of (frames, rows, columns) per sample.

    The first entry are the latents, references follow. The pipelines divide the timestep by 1000.
    """

    guidance = Guidance.SEQUENTIAL
    even_sigmas = True
    controls = ("controlnet_block_samples",)

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told ``t``."""
        return FlowPath(scale=1.0)

    @override
    def grid(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """From ``img_shapes``."""
        _, rows, columns = _shapes(kwargs["img_shapes"][0])[0]
        return rows, columns

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """``img_shapes`` with another first entry."""
        ours = (1, size.height // 2, size.width // 2)
        told = kwargs["img_shapes"]
        return {"img_shapes": [[ours, *shapes[1:]] if isinstance(shapes, list) else ours for shapes in told]}

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Edit pipelines keep the image's aspect ratio."""
        if "Edit" in type(pipe).__name__:
            raise unknown_size(pipe)
        return super().default_pixels(pipe, arguments)

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """Edits of a masked picture have its size, whatever the call says."""
        if "EditInpaint" in type(pipe).__name__:
            raise unknown_size(pipe)
        return super().call_size(pipe, arguments)


def _shapes(of_one: Any) -> list[tuple[int, int, int]]:
    """The shapes of one sample; the control pipelines name that of the latents alone, without a list around it."""
    return of_one if isinstance(of_one, list) else [of_one]


class QwenImageUnits(ScannedUnits):
    """Heads, feed-forward channels and blocks of ``QwenImageTransformer2DModel``."""

    @override
    def inputs(self, denoiser: Any, size: LatentSize, text: int, batch: int = 1) -> dict[str, Any]:
        """Packed latents and text embeddings."""
        config, weight = denoiser.config, denoiser.img_in.weight
        like = {"device": weight.device, "dtype": weight.dtype}
        rows, columns = size.height // 2, size.width // 2
        return {
            "hidden_states": torch.zeros(batch, rows * columns, config.in_channels, **like),
            "encoder_hidden_states": torch.zeros(batch, text, config.joint_attention_dim, **like),
            "encoder_hidden_states_mask": None,
            "timestep": torch.full((batch,), 0.5, **like),
            "img_shapes": [[(1, rows, columns)]] * batch,
        }


class QwenImageTokens(JointTokens):
    """Text, picture, references."""

    @override
    def patch(self, denoiser: nn.Module) -> tuple[int, int]:
        """The pipeline packs 2x2 latent pixels."""
        return 1, 2


ADAPTER = Adapter(
    family="qwen-image",
    pipelines=(
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
        "QwenImageEditInpaintPipeline",
        "QwenImageControlNetPipeline",
        "QwenImageControlNetInpaintPipeline",
    ),
    models=("QwenImageTransformer2DModel",),
    capabilities=(
        QwenImageLayout(),
        LatentsControl(),
        QwenImageTokens(r"transformer_blocks\.\d+\.attn", "before"),
        QwenImageUnits(),
    ),
    refused={
        "QwenImageLayeredPipeline": SEVERAL,
        "QwenImage21Pipeline": "its denoiser keeps a cache of reference tokens between steps",
    },
)
