"""CogView3-Plus and CogView4 (diffusers ``CogView3PlusTransformer2DModel``, ``CogView4Transformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    Channels,
    FlowPath,
    Guidance,
    ImageLayout,
    JointTokens,
    LatentSize,
    Path,
    Pipeline,
    VariancePreservingPath,
)
from hasten.pipelines.adapters.untried import RESIZING


class CogView3Layout(ImageLayout):
    """Plain latents, told the size of the picture; positions follow the shape."""

    resizing = RESIZING

    @override
    def path(self, pipe: Pipeline) -> Path:
        """The scheduler's ``alphas_cumprod``."""
        return VariancePreservingPath()

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_size`` of the transformer."""
        side: int = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        return side, side

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """``target_size`` in pixels."""
        told = kwargs["target_size"]
        return {"target_size": torch.tensor(self.pixels(pipe, size)).to(told).expand_as(told)}


class CogView4Layout(CogView3Layout):
    """The control model appends the latents of its picture."""

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def sigmas(self, pipe: Pipeline, steps: int) -> list[float]:
        """Whole training timesteps, the last one 1."""
        trained: int = pipe.scheduler.config.num_train_timesteps
        falls = (trained - 1.0) / max(steps - 1, 1)
        return [int(trained - falls * index) / trained for index in range(steps)]

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """As many clean ones behind the noisy ones."""
        return Channels.leading(pipe.transformer.config.out_channels)


class CogViewTokens(JointTokens):
    """Text, then picture; CogView4's mask of the text is one over pairs."""

    paired_mask = True


_TOKENS = CogViewTokens(r"transformer_blocks\.\d+\.attn1", "before")

ADAPTERS = (
    Adapter(
        family="cogview3",
        pipelines=("CogView3PlusPipeline",),
        capabilities=(CogView3Layout(), _TOKENS),
        models=("CogView3PlusTransformer2DModel",),
    ),
    Adapter(
        family="cogview4-control",
        pipelines=("CogView4ControlPipeline",),
        capabilities=(CogView4Layout(), _TOKENS),
        models=("CogView4Transformer2DModel",),
    ),
)
