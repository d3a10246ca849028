"""Measured time of pruned models beside their base. Fewer operations do not take proportionally less time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from hasten.eval.efficiency.timing import interleave
from hasten.eval.statistics import Estimate
from hasten.extend import Grain, LatentSize, PrunableUnits, Target, UNetUnits, unwrapped
from hasten.plugins.aptp.base_model import prepare
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.make.gate_layout import GateLayout
from hasten.plugins.aptp.surgery import pruned

if TYPE_CHECKING:
    from hasten.extend import Pipeline

__all__ = ["SHAPES", "Timed", "even_plan_time", "measure", "untrained_unet"]

BASE_NAME = "base"
_TEXT = 77

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "sd21": {
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""Configurations of the U-Nets of Stable Diffusion 2.1 and XL."""


@dataclass(frozen=True)
class Timed:
    """Time of one model's forward beside the base's.

    Args:
        name: ``"base"``, or the number of the expert.
        macs_share: share of the base's multiply-accumulates.
        time: share of the base's time, with its interval.
        seconds: median of a forward.
    """

    name: str
    macs_share: float
    time: Estimate
    seconds: float


def measure(
    pipe: Pipeline, folder: Path, *, batch: int = 1, rounds: int = 9, compiled: bool = False
) -> list[Timed]:
    """Time the base and every expert of a bundle at the bundle's size.

    Args:
        pipe: the pipeline with the base.
        folder: the bundle.
        batch: samples in a forward.
        rounds: interleaved repetitions.
        compiled: compile every model first.

    Raises:
        CheckpointError: the bundle is damaged.
        UnsupportedError: it was made for another base.
    """
    target, bundle = Target.of(pipe), Bundle.load(folder)
    base = unwrapped(next(iter(target.denoisers.values())))
    plain, structure = prepare(target, bundle, base, weights=True)
    units = target.capability(PrunableUnits)
    models, shares = {BASE_NAME: base}, {BASE_NAME: 1.0}
    for number, entry in enumerate(bundle.manifest.experts):
        models[str(number)] = bundle.build(bundle.source(plain, structure, number), structure, number)
        shares[str(number)] = entry.macs_share
    size = bundle.manifest.size
    forward = partial(units.forward, inputs=units.inputs(base, size.latents, size.text, batch))
    return _timed(models, shares, forward, rounds, compiled)


def untrained_unet(shape: str) -> nn.Module:
    """A U-Net of a published shape with random weights, in float32."""
    from diffusers import UNet2DConditionModel

    return cast("nn.Module", UNet2DConditionModel(**SHAPES[shape], use_linear_projection=True))


def even_plan_time(
    model: nn.Module,
    side: int,
    batch: int,
    *,
    share: float = 0.7,
    rounds: int = 9,
    compiled: bool = False,
) -> Timed:
    """Time of a pruned U-Net beside the whole one.

    Every group loses about the same share of its units, and no block is removed. Such plans gain less time than plans
    that remove blocks.

    Args:
        model: a U-Net.
        side: of the latents.
        batch: samples in a forward.
        share: of the multiply-accumulates that stay, in (0, 1].
        rounds: interleaved repetitions.
        compiled: compile both models first.
    """
    model.eval().requires_grad_(False)
    units, size = UNetUnits(), LatentSize(side, side)
    costs = CostModel(model, units, units.structure(model, Grain()), size, _TEXT)
    gates = GateLayout(costs.structure, costs)
    even = torch.cat([torch.linspace(1, 0, width) for width in gates.widths])
    plan = gates.plan(torch.cat([even, torch.full((len(gates.blocks),), 2.0)]), share)
    models = {BASE_NAME: model, "plan": pruned(model, costs.structure, plan)}
    shares = {BASE_NAME: 1.0, "plan": costs.ratio(plan)}
    forward = partial(units.forward, inputs=units.inputs(model, size, _TEXT, batch))
    return _timed(models, shares, forward, rounds, compiled)[1]


def _timed(
    models: Mapping[str, nn.Module],
    shares: Mapping[str, float],
    forward: Callable[[Any], object],
    rounds: int,
    compiled: bool,
) -> list[Timed]:
    """Time forwards in turns; every ratio is the median over pairs that ran back to back."""

    @torch.no_grad()
    def run(model: Any) -> None:
        forward(model)

    tasks = {
        name: partial(run, torch.compile(model) if compiled else model) for name, model in models.items()
    }
    timings = interleave(tasks, rounds=rounds, device=next(models[BASE_NAME].parameters()).device)
    return [
        Timed(name, shares[name], timings.ratio(name, BASE_NAME), timings.median(name)) for name in models
    ]
