"""Sana (diffusers ``SanaTransformer2DModel``), behind an autoencoder that shrinks 32 times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    BlockOutputs,
    ControlNetwork,
    FlowPath,
    ImageLayout,
    Path,
    Pipeline,
)
from hasten.pipelines.adapters.pixart import binned_pixels

_TRIGONOMETRIC = "its few-step scheduler follows a trigonometric path, not rectified flow"


class SanaLayout(ImageLayout):
    """Plain latents, one token each; positions come from convolutions."""

    multiple = 1
    controls = ("controlnet_block_samples",)

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow; the pipeline multiplies the timestep by the transformer's ``timestep_scale``."""
        return FlowPath(scale=1000.0 * pipe.transformer.config.timestep_scale)

    @override
    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``use_resolution_binning`` picks the nearest aspect ratio of the training set."""
        height, width = super().call_pixels(pipe, arguments)
        if not arguments.get("use_resolution_binning", True):
            return height, width
        return binned_pixels(pipe, height, width, _bins(pipe.transformer.config.sample_size))


class SanaUnscaledLayout(SanaLayout):
    """The timestep is told as the scheduler has it."""

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told ``1000 t``."""
        return FlowPath()


def _bins(sample_size: int) -> dict[str, list[float]] | None:
    from diffusers.pipelines.sana import pipeline_sana as sana

    table: dict[int, dict[str, list[float]]] = {
        128: sana.ASPECT_RATIO_4096_BIN,
        64: sana.ASPECT_RATIO_2048_BIN,
        32: sana.ASPECT_RATIO_1024_BIN,
        16: sana.ASPECT_RATIO_512_BIN,
    }
    return table.get(sample_size)


LINEAR = "its self-attention is linear and computes no scores that could be left out"

_OUTPUTS = BlockOutputs({"SanaTransformerBlock": (0, None)})

ADAPTERS = (
    Adapter(
        family="sana",
        pipelines=("SanaPipeline",),
        capabilities=(SanaLayout(), _OUTPUTS),
        models=("SanaTransformer2DModel",),
        missing={AttentionTokens: LINEAR},
        refused={"SanaSprintPipeline": _TRIGONOMETRIC, "SanaSprintImg2ImgPipeline": _TRIGONOMETRIC},
    ),
    Adapter(
        family="sana-unscaled",
        pipelines=("SanaControlNetPipeline", "SanaPAGPipeline"),
        capabilities=(SanaUnscaledLayout(), ControlNetwork(), _OUTPUTS),
        missing={AttentionTokens: LINEAR},
    ),
)
