"""FLUX.1 and FLUX.1 Kontext (diffusers ``FluxTransformer2DModel``)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    CacheDefaults,
    Channels,
    ControlNetwork,
    FlowPath,
    Guidance,
    JointTokens,
    LatentSize,
    PackedLayout,
    Path,
    Pipeline,
    ScannedUnits,
    image_pixels,
    stock_class,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

SEVERAL = (
    "its latents are several pictures in one token sequence, of which no technique knows the arrangement"
)


class FluxLayout(PackedLayout):
    """2x2-packed tokens with ``img_ids`` (..., L, axes): picture number, row, column.

    The pipelines divide the timestep by 1000. Picture 0 are the latents; Kontext numbers its reference 1.
    """

    guidance = Guidance.EMBEDDED
    even_sigmas = True
    controls = ("controlnet_block_samples", "controlnet_single_block_samples")
    number: ClassVar[int] = 0
    """Picture number of the latents."""

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Latents; a control picture, or a masked picture and a mask for each pixel of a latent pixel."""
        config = pipe.transformer.config
        noisy = (config.get("out_channels") or config.in_channels) // self.side**2
        masks = count - 2 * noisy
        return Channels.leading(
            noisy, slice(2 * noisy, count) if masks > 0 else slice(0, 0), math.isqrt(max(masks, 1))
        )

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told ``t``."""
        return FlowPath(scale=1.0)

    @override
    def grid(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """Counted in the ids; their largest would do, but half precision merges rows beyond 256."""
        ids = _of_one(kwargs["img_ids"])
        ours = ids[:, 0] == self.number
        count, columns = torch.stack([ours.sum(), (ours & (ids[:, 1] == ids[0, 1])).sum()]).tolist()
        return count // columns, columns

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """Rows and columns in unit steps from those of the first token, as in a small picture; reference ids stay."""
        old: Tensor = kwargs["img_ids"]
        rows, columns = size.height // self.side, size.width // self.side
        ids = _of_one(old)[:1].float().repeat(rows * columns, 1).view(rows, columns, -1)
        ids[..., 1] += torch.arange(rows, device=old.device)[:, None]
        ids[..., 2] += torch.arange(columns, device=old.device)
        ids = ids.flatten(0, 1).to(old.dtype).expand(*old.shape[:-2], -1, -1)
        before_rows, before_columns = self.grid(pipe, kwargs)
        return {"img_ids": torch.cat([ids, old[..., before_rows * before_columns :, :]], dim=-2)}

    @override
    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Kontext keeps only the aspect ratio of ``height`` and ``width``, and fills ``max_area``.

        Where it inpaints, the picture decides.
        """
        area = arguments.get("max_area")
        if area is not None and arguments.get("mask_image") is not None:
            return _kontext_pixels(pipe, arguments)
        height, width = super().call_pixels(pipe, arguments)
        if area is None:
            return height, width
        ratio = width / height
        return round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)


def _kontext_pixels(pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Size of the picture, or unless told not to, the one that Kontext was trained on with the nearest aspect ratio."""
    height, width = image_pixels(pipe, arguments["image"])
    if not arguments.get("_auto_resize", True):
        return height, width
    trained = sys.modules[stock_class(pipe).__module__].PREFERRED_KONTEXT_RESOLUTIONS
    _, width, height = min((abs(width / height - w / h), w, h) for w, h in trained)
    return height, width


class FluxTokens(JointTokens):
    """Text, picture, references; ids of the picture count 2x2-packed tokens."""

    @override
    def patch(self, denoiser: nn.Module) -> tuple[int, int]:
        """``patch_size`` is 1: the pipeline packs the latents."""
        return 1, 2

    @override
    def text_length(self, kwargs: Mapping[str, Any]) -> int:
        """As many as the text has ids."""
        return int(kwargs["txt_ids"].shape[-2])


def _of_one(ids: Tensor) -> Tensor:
    """The ids of one sample: some pipelines repeat them for every sample of the batch."""
    return ids[0] if ids.ndim == 3 else ids


class FluxUnits(ScannedUnits):
    """Heads, feed-forward channels and blocks of ``FluxTransformer2DModel``."""

    @override
    def inputs(self, denoiser: Any, size: LatentSize, text: int, batch: int = 1) -> dict[str, Any]:
        """Packed latents with their positions, text and pooled embeddings, guidance where it is embedded."""
        config, weight = denoiser.config, denoiser.x_embedder.weight
        like = {"device": weight.device, "dtype": weight.dtype}
        rows, columns = size.height // 2, size.width // 2
        guidance = torch.full((batch,), 3.5, **like) if config.guidance_embeds else None
        return {
            "hidden_states": torch.zeros(batch, rows * columns, config.in_channels, **like),
            "encoder_hidden_states": torch.zeros(batch, text, config.joint_attention_dim, **like),
            "pooled_projections": torch.zeros(batch, config.pooled_projection_dim, **like),
            "timestep": torch.full((batch,), 0.5, **like),
            "img_ids": torch.zeros(rows * columns, 3, **like),
            "txt_ids": torch.zeros(text, 3, **like),
            "guidance": guidance,
        }


ADAPTER = Adapter(
    family="flux",
    pipelines=(
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxKontextPipeline",
        "FluxKontextInpaintPipeline",
        "FluxFillPipeline",
        "FluxControlPipeline",
        "FluxControlImg2ImgPipeline",
        "FluxControlInpaintPipeline",
        "FluxControlNetPipeline",
        "FluxControlNetImg2ImgPipeline",
        "FluxControlNetInpaintPipeline",
    ),
    capabilities=(
        FluxLayout(),
        ControlNetwork(),
        FluxTokens(r"(single_)?transformer_blocks\.\d+\.attn", "before"),
        FluxUnits(),
        CacheDefaults(0.08, "ParaAttention in the documentation of diffusers", ratios="flux"),
    ),
    models=("FluxTransformer2DModel",),
    refused={
        "VisualClozePipeline": SEVERAL,
        "VisualClozeGenerationPipeline": SEVERAL,
    },
)
