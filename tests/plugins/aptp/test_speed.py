"""What a plan of 70 % of the operations gains in time, on published shapes with random weights."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from hasten.pipelines.adapters import LatentSize
from hasten.pipelines.adapters._scan import UNetUnits
from hasten.pipelines.adapters._units import Grain
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.latency import compare_forwards
from hasten.plugins.aptp.make.space import Space
from hasten.plugins.aptp.surgery import pruned

BENCHMARKS = Path(__file__).parents[3] / "docs" / "benchmarks"


def sd21(width=1.0):
    """The U-Net of Stable Diffusion 2.1, or a narrower one of its shape."""
    from diffusers import UNet2DConditionModel

    channels = tuple(int(c * width) for c in (320, 640, 1280, 1280))
    heads = tuple(c // 64 for c in channels)
    return UNet2DConditionModel(
        block_out_channels=channels,
        attention_head_dim=heads,
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def sdxl():
    """The U-Net of Stable Diffusion XL."""
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


def timed(model, side, batch, rounds, *, compiled=False):
    """Share of time of a plan that keeps 70 % of the operations, evenly over all units."""
    model = model.eval().requires_grad_(False)
    units = UNetUnits()
    structure = units.structure(model, Grain())
    costs = CostModel(model, units, structure, LatentSize(side, side), 77)
    space = Space(structure, costs)
    # Every group loses the same share; blocks stay, so that this is the harder kind of plan to gain time from.
    even = torch.cat([torch.linspace(1, 0, structure.groups[name].units) for name in space.groups])
    plan = space.plan(torch.cat([even, torch.full((len(space.blocks),), 2.0)]), 0.7)
    models = {"base": model, "plan": pruned(model, structure, plan)}
    shares = {"base": 1.0, "plan": costs.ratio(plan)}
    inputs = units.inputs(model, LatentSize(side, side), 77, batch)
    return compare_forwards(models, shares, partial(units.forward, inputs=inputs), rounds, compiled)[1]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_seventy_percent_of_the_operations_take_at_most_eighty_percent_of_the_time(batch):
    row = timed(sd21(0.5), 32, batch, 5)
    assert row.macs_share <= 0.7
    assert row.time.value <= 0.8, row


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("name", "build", "side"), [("sd21", sd21, 96), ("sdxl", sdxl, 128)])
def test_plans_are_faster_on_a_gpu(name, build, side, batch, compiled):
    row = timed(build().half().cuda(), side, batch, 15, compiled=compiled)
    device = torch.cuda.get_device_name().replace(" ", "-").lower()
    file = BENCHMARKS / f"aptp-{name}-{device}.jsonl"
    record = {
        "batch": batch,
        "compiled": compiled,
        "side": side,
        "macs_share": row.macs_share,
        "time": row.time.value,
    }
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")
    assert row.time.value < 1
