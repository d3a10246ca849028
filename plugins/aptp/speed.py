"""What cutting gains in time: a plan at a given share of the operations, on published shapes with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from hasten.extend import Grain, LatentSize, UNetUnits
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.latency import Timed, compare_forwards
from hasten.plugins.aptp.make.space import Space
from hasten.plugins.aptp.surgery import pruned

__all__ = ["SHAPES", "even_plan_time"]

_TEXT = 77


def _sd21() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def _sdxl() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


SHAPES: Mapping[str, Callable[[], Any]] = {"sd21": _sd21, "sdxl": _sdxl}
"""U-Nets of Stable Diffusion 2.1 and XL, untrained."""


def even_plan_time(
    model: Any, side: int, batch: int, *, share: float = 0.7, rounds: int = 9, compiled: bool = False
) -> Timed:
    """Time of a plan that keeps a share of the operations, beside the whole model.

    Every group loses about the same share of its units and no block goes, which is the harder kind of plan to gain
    time from.

    Args:
        model: a U-Net.
        side: of the latents.
        batch: samples in a forward.
        share: of the multiply-accumulates.
        rounds: turns.
        compiled: compile both.
    """
    model = model.eval().requires_grad_(False)
    units, size = UNetUnits(), LatentSize(side, side)
    structure = units.structure(model, Grain())
    costs = CostModel(model, units, structure, size, _TEXT)
    space = Space(structure, costs)
    even = torch.cat([torch.linspace(1, 0, structure.groups[name].units) for name in space.groups])
    plan = space.plan(torch.cat([even, torch.full((len(space.blocks),), 2.0)]), share)
    models = {"base": model, "plan": pruned(model, structure, plan)}
    shares = {"base": 1.0, "plan": costs.ratio(plan)}
    forward = partial(units.forward, inputs=units.inputs(model, size, _TEXT, batch))
    return compare_forwards(models, shares, forward, rounds, compiled)[1]
