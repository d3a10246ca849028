"""Z-Image (diffusers ``ZImageTransformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    ControlNetwork,
    FlowPath,
    ImageLayout,
    JointTokens,
    LatentSize,
    Path,
    Pipeline,
    TokenGrid,
    image_pixels,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class ZImageLayout(ImageLayout):
    """A list of (C, 1, H, W) latents, in and out; positions follow the shapes.

    One forward holds both halves of guidance, conditional first.
    """

    latents = "x"
    conditional_first = True
    even_sigmas = True
    timestep = "t"

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told the data fraction ``1 - t``; the pipeline negates the output."""
        return FlowPath(scale=1.0, data_fraction=True)

    @override
    def resizing_refusal(self, pipe: Pipeline) -> str | None:
        """Samples are stepped one by one."""
        return "it passes the denoiser a list of latents"

    @override
    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Stacked, without the frame axis."""
        return torch.stack(list(packed)).squeeze(2)

    @override
    def arrange(self, latent: Tensor) -> list[Tensor]:
        """One tensor per sample."""
        return list(latent.unsqueeze(2).unbind(0))

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """1024, or the given image's."""
        image = arguments.get("image")
        return (1024, 1024) if image is None else image_pixels(pipe, image)


class ZImageTokens(JointTokens):
    """Picture, then text, each padded to a multiple of 32 tokens (``SEQ_MULTI_OF``)."""

    _MULTIPLE = 32

    @override
    def patch(self, denoiser: nn.Module) -> tuple[int, int]:
        """That of pictures, the first of the model's: the pipelines choose no other."""
        config: Any = denoiser.config
        return int(config["all_f_patch_size"][0]), int(config["all_patch_size"][0])

    @override
    def planned(self, denoiser: nn.Module, layer: str, size: LatentSize, text: int) -> TokenGrid:
        """The grid, its padding, and the text with its own."""
        grid = self.grid(denoiser, size)
        padding = -grid.tokens % self._MULTIPLE + text + -text % self._MULTIPLE
        return TokenGrid(grid.frames, grid.height, grid.width, 0, padding)


class ZImageControlledLayout(ZImageLayout):
    """With control features."""

    controls = ("controlnet_block_samples",)
    rigid_controls = "its control features lie along a sequence of picture and text, padded for one size"


class ZImageControl(ControlNetwork):
    """The condition is a picture's latents, and for inpainting a mask and the latents of the masked picture."""

    conditions = ("control_context",)

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """One mask behind the latents."""
        latents: int = pipe.transformer.in_channels
        return Channels(slice(0, 0), slice(latents, min(latents + 1, count)))


CONTROLLED = Adapter(
    family="z-image-controlled",
    pipelines=("ZImageControlNetPipeline", "ZImageControlNetInpaintPipeline"),
    capabilities=(
        ZImageControlledLayout(),
        ZImageControl(),
        ZImageTokens(r"layers\.\d+\.attention", "after"),
    ),
)
ADAPTER = Adapter(
    family="z-image",
    pipelines=("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    capabilities=(ZImageLayout(), ZImageTokens(r"layers\.\d+\.attention", "after")),
    models=("ZImageTransformer2DModel",),
    refused={"ZImageOmniPipeline": "its denoiser takes lists of reference pictures beside the latents"},
)
ADAPTERS = (ADAPTER, CONTROLLED)
