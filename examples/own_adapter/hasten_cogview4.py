"""A complete adapter for CogView4 of diffusers, a family without a built-in adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from typing_extensions import override

from hasten.extend import (
    Adapter,
    FlowPath,
    Guidance,
    ImageLayout,
    JointTokens,
    LatentSize,
    Pipeline,
    hookimpl,
)


class CogView4Layout(ImageLayout):
    # Two forwards per step, the conditional one first.
    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> FlowPath:
        # The timestep is 1000 times the flow time.
        return FlowPath(scale=1000.0)

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, object]) -> tuple[int, int]:
        side: int = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        return side, side

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Tensor], size: LatentSize) -> dict[str, Tensor]:
        given = kwargs["target_size"]
        return {"target_size": torch.tensor(self.pixels(pipe, size)).to(given).expand_as(given)}


ADAPTER = Adapter(
    family="cogview4",
    pipelines=("CogView4Pipeline",),
    capabilities=(CogView4Layout(), JointTokens(r"transformer_blocks\.\d+\.attn1", text="before")),
)


@hookimpl
def hasten_register_adapters(register: Callable[[Adapter], None]) -> None:
    register(ADAPTER)
