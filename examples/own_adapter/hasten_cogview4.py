"""CogView4 of diffusers, a family that `hasten` does not bring itself: a complete adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from hasten.extend import Adapter, FlowPath, Guidance, ImageLayout, JointTokens, LatentSize, hookimpl

if TYPE_CHECKING:
    from diffusers import CogView4Pipeline
    from torch import Tensor


class CogView4Layout(ImageLayout):
    # Two forwards per step, the conditional one first.
    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: CogView4Pipeline) -> FlowPath:
        # The timestep is 1000 times the flow time.
        return FlowPath(scale=1000.0)

    @override
    def default_pixels(self, pipe: CogView4Pipeline, arguments: Mapping[str, object]) -> tuple[int, int]:
        side: int = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        return side, side

    @override
    def positions(
        self, pipe: CogView4Pipeline, kwargs: Mapping[str, Tensor], size: LatentSize
    ) -> dict[str, Tensor]:
        told = kwargs["target_size"]
        return {"target_size": torch.tensor(self.pixels(pipe, size)).to(told).expand_as(told)}


ADAPTER = Adapter(
    family="cogview4",
    pipelines=("CogView4Pipeline",),
    capabilities=(CogView4Layout(), JointTokens(r"transformer_blocks\.\d+\.attn1", text="before")),
)


@hookimpl
def hasten_register_adapters(register: Callable[[Adapter], None]) -> None:
    register(ADAPTER)
