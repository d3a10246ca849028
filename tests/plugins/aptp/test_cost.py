"""The cost model against published shapes, PyTorch's counter, and the models it describes."""

import pytest
import torch
from families import TEXT

from hasten._adapters.scan import UNetUnits
from hasten._adapters.units import Grain
from hasten.eval.efficiency import count_flops
from hasten.extend import LatentSize
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import pruned

from .test_surgery import some


def sd21():
    """The U-Net of Stable Diffusion 2.1 without its weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=96,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )


@pytest.fixture(scope="module")
def unet():
    model = sd21()
    return model, UNetUnits().structure(model, Grain(ffn_units=32))


@pytest.mark.parametrize(
    ("side", "text", "linear", "total"),
    [(96, 77, 760.6, 1074.6), (96, 1, 758.6, 1068.7), (64, 77, 339.1, 402.2), (32, 77, 86.3, 90.6)],
)
def test_stable_diffusion_2_1_costs_what_it_costs(unet, side, text, linear, total):
    model, structure = unet
    full = CostModel(model, UNetUnits(), structure, LatentSize(side, side), text).full
    assert full.macs_linear / 1e9 == pytest.approx(linear, rel=0.002)
    assert full.macs / 1e9 == pytest.approx(total, rel=0.002)
    assert full.parameters == pytest.approx(865.9e6, rel=1e-4)


def test_the_published_total_charges_cross_attention_as_if_the_text_were_the_picture(unet):
    model, structure = unet
    costs = CostModel(model, UNetUnits(), structure, LatentSize(96, 96), 1)
    square = sum(
        2.0 * costs.layers[f"{name}.to_q"].rows ** 2 * attended.width
        for name, attended in costs.attentions.items()
    )
    assert (costs.full.macs_linear + square) / 1e9 == pytest.approx(1384.2, rel=0.005)


def test_the_structure_of_stable_diffusion_2_1_is_the_published_one(unet):
    _, structure = unet
    count = {
        kind: sum(g.units for g in structure.groups.values() if g.kind == kind)
        for kind in ("resnet", "ffn", "heads")
    }
    assert count == {"resnet": 704, "ffn": 512, "heads": 390}
    assert len(structure.groups) == 70
    legal = {name for name, block in structure.blocks.items() if block.refusal is None}
    published = {f"down_blocks.{i}.resnets.1" for i in range(4)} | {
        f"down_blocks.{i}.attentions.1" for i in range(3)
    }
    published |= {f"up_blocks.{i}.resnets.2" for i in range(4)} | {
        f"up_blocks.{i}.attentions.2" for i in (1, 2, 3)
    }
    assert len(published) == 14
    assert published <= legal


def test_resnets_of_stable_diffusion_2_1_are_cut_in_steps_of_forty_channels(unet):
    steps = {
        g.cuts[0].size: g.step
        for g in UNetUnits().structure(unet[0], Grain()).groups.values()
        if g.kind == "resnet"
    }
    assert steps == {10: 4, 20: 2, 40: 1}


@pytest.mark.parametrize("seed", [1, 2])
def test_costs_are_those_of_the_cut_model(subject, seed):
    model = CostModel(subject.denoiser, subject.units, subject.structure, subject.size, TEXT)
    plan = some(subject.structure, seed)
    cut = pruned(subject.denoiser, subject.structure, plan)
    cost = model.of(plan.without_whole(subject.structure))
    assert cost.parameters == sum(p.numel() for p in cut.parameters())
    inputs = subject.units.inputs(cut, subject.size, TEXT)
    assert 2 * cost.macs == pytest.approx(count_flops(lambda: subject.run(cut, inputs)), rel=1e-6)
    assert model.of(plan) == cost


def test_the_whole_model_has_ratio_one(subject):
    model = CostModel(subject.denoiser, subject.units, subject.structure, subject.size, TEXT)
    assert model.ratio(PruningPlan()) == 1
    assert model.full.parameters == sum(p.numel() for p in subject.denoiser.parameters())
