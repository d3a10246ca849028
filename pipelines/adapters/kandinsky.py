"""Kandinsky 2.1, 2.2 and 3 (diffusers ``UNet2DConditionModel`` and ``Kandinsky3UNet``): the decoder's steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import Adapter, AttentionTokens, Channels, LatentSize, Pipeline, resize_clean
from hasten.pipelines.adapters.stable_diffusion import StableDiffusionLayout
from hasten.pipelines.adapters.untried import RESIZING

_JOINED = "its layers attend to text and picture at once, so they have no self-attention of the picture alone"


class KandinskyLayout(StableDiffusionLayout):
    """Plain latents; the output of 2.x has a learned variance behind the noise.

    Inpainting appends the masked picture and a mask; the control pipelines of 2.2 give a hint in pixels.
    """

    resizing = RESIZING

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """Latents, masked picture, mask."""
        noisy: int = pipe.movq.config.latent_channels
        return Channels.leading(noisy, slice(2 * noisy, count))

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The hint shows the picture, so it shrinks with it."""
        given = kwargs.get("added_cond_kwargs") or {}
        if given.get("hint") is None:
            return {}
        height, width = self.pixels(pipe, size)
        return {
            "added_cond_kwargs": {**given, "hint": resize_clean(given["hint"], LatentSize(height, width))}
        }

    @override
    def pixels(self, pipe: Pipeline, size: LatentSize) -> tuple[int, int]:
        """The factor of the autoencoder; combined pipelines have it in no attribute."""
        factor = _factor(pipe)
        return size.height * factor, size.width * factor

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """Rounded up to whole multiples of the factor's square."""
        given = arguments.get("latents")
        if given is not None:
            return self.given_size(given)
        factor = _factor(pipe)
        height, width = (-(-arguments[name] // factor**2) * factor for name in ("height", "width"))
        return LatentSize(height, width)


def _factor(pipe: Pipeline) -> int:
    factor: int = 2 ** (len(pipe.movq.config.block_out_channels) - 1)
    return factor


ADAPTER = Adapter(
    family="kandinsky",
    pipelines=(
        "KandinskyPipeline",
        "KandinskyImg2ImgPipeline",
        "KandinskyInpaintPipeline",
        "KandinskyV22Pipeline",
        "KandinskyV22Img2ImgPipeline",
        "KandinskyV22InpaintPipeline",
        "KandinskyV22ControlnetPipeline",
        "KandinskyV22ControlnetImg2ImgPipeline",
        "KandinskyCombinedPipeline",
        "KandinskyImg2ImgCombinedPipeline",
        "KandinskyInpaintCombinedPipeline",
        "KandinskyV22CombinedPipeline",
        "KandinskyV22Img2ImgCombinedPipeline",
        "KandinskyV22InpaintCombinedPipeline",
        "Kandinsky3Pipeline",
        "Kandinsky3Img2ImgPipeline",
    ),
    denoisers=("unet",),
    capabilities=(KandinskyLayout(),),
    missing={AttentionTokens: _JOINED},
)
