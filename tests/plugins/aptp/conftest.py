"""Denoisers of every family that can be pruned, with their structures."""

from dataclasses import dataclass
from typing import Any

import families
import pytest
import torch

from hasten._adapters.units import Grain, PrunableUnits, Structure
from hasten._target import Target
from hasten.extend import LatentSize

DIFFUSION = ("sd15", "sdxl", "sd3", "flux", "pixart-sigma", "pixart-alpha", "qwen-image")
PRUNABLE = (*DIFFUSION, "var-class", "var-text")
SIZE = LatentSize(8, 12)
LATENTS = LatentSize(16, 16)


@dataclass(frozen=True)
class Subject:
    """A tiny pipeline's denoiser and what is known of it."""

    name: str
    pipe: Any
    target: Target
    units: PrunableUnits
    denoiser: Any
    structure: Structure
    size: LatentSize = SIZE

    def inputs(self, batch=2):
        """Random arguments of a forward."""
        given = self.units.inputs(self.denoiser, self.size, families.TEXT, batch)
        noise = torch.Generator().manual_seed(5)
        return {
            key: torch.randn(value.shape, generator=noise)
            if isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.ndim > 1
            and "ids" not in key
            else value
            for key, value in given.items()
        }

    @torch.no_grad()
    def run(self, denoiser, inputs):
        """The prediction."""
        return self.units.forward(denoiser, inputs)


def next_scale(condition):
    """A tiny VARPipeline: two blocks of four heads over 30 tokens, weights large enough that attention is not flat."""
    from hasten.pipelines.var.pipeline import VARPipeline
    from hasten.pipelines.var.scheduler import NextScaleScheduler
    from hasten.pipelines.var.transformer import NextScaleTransformer
    from hasten.pipelines.var.vq_model import MultiScaleVQModel

    torch.manual_seed(0)
    transformer = NextScaleTransformer(
        num_layers=2,
        hidden_size=32,
        num_heads=4,
        token_dim=8,
        num_outputs=32,
        schedule=((1, 1), (2, 2), (3, 3), (4, 4)),
        num_levels=4,
        condition=condition,
        text_width=24,
        text_tokens=families.TEXT,
        pool_heads=2,
        rotary=condition == "text",
    )
    for name, parameter in transformer.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if name.endswith("logit_scale") else 0.15)
    vae = MultiScaleVQModel((16, 16), 1, 8, 32, norm_groups=8, attention=False)
    return VARPipeline(transformer.eval(), vae.eval(), NextScaleScheduler())


def make_subject(name):
    """The subject of a family."""
    if name.startswith("var"):
        pipe, size = next_scale(name.removeprefix("var-")), LatentSize(4, 4)
    else:
        pipe, size = families.FAMILIES[name](), SIZE
    target = Target.of(pipe)
    units = target.capability(PrunableUnits)
    denoiser = next(iter(target.denoisers.values()))
    return Subject(
        name, pipe, target, units, denoiser, units.structure(denoiser, Grain(ffn=8, align=1)), size
    )


@pytest.fixture(scope="module", params=PRUNABLE)
def subject(request):
    """Each family in turn."""
    return make_subject(request.param)


@pytest.fixture(scope="session")
def scenes_pipe():
    """A StableDiffusionPipeline with the miniature's text encoder and an untrained denoiser of its shape."""
    from pathlib import Path

    from hasten_miniatures.runs import load_autoencoder, load_text_tower
    from hasten_miniatures.t2i_unet import assemble, build_text_encoder, build_unet

    nowhere = Path("/nonexistent")
    torch.manual_seed(0)
    pipe = assemble(
        load_autoencoder(nowhere),
        build_text_encoder(load_text_tower(nowhere)),
        build_unet().eval().requires_grad_(False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPTS = (
    "a large red circle in the centre on a white background",
    "two small green stars at the top on a black background",
    "a small blue cross on the left and a large red star on the right on a grey background",
    "three small yellow squares at the bottom on a pink background",
    "a large orange triangle at the top left on a black background",
    "a small purple cross on the right on a white background",
)


def write_bundle(pipe, folder, *, weights="slice", seed=0, experts=3, size=LATENTS, segments=(), routes=()):
    """A bundle of random nested plans for ``pipe``, whose router spreads :data:`PROMPTS` over all experts."""
    from hasten.plugins.aptp.bundle import Expert, save_bundle
    from hasten.plugins.aptp.cost import CostModel
    from hasten.plugins.aptp.encoder import PipelineEncoder
    from hasten.plugins.aptp.manifest import (
        BaseEntry,
        ExpertEntry,
        GrainEntry,
        Manifest,
        RouteEntry,
        RouterEntry,
        SizeEntry,
        config_digest,
    )
    from hasten.plugins.aptp.router import PrototypeRouter

    from .test_surgery import some

    target = Target.of(pipe)
    units = target.capability(PrunableUnits)
    grain = GrainEntry(ffn=16)
    denoiser = next(iter(target.denoisers.values()))
    structure = units.structure(denoiser, grain.grain())
    costs = CostModel(denoiser, units, structure, size, 24)
    plans = [some(structure, seed + i).without_whole(structure) for i in range(experts)]
    plans.sort(key=costs.ratio)
    encoder = PipelineEncoder(pipe, "text_encoder")
    vectors = torch.stack([encoder.encode(prompt) for prompt in PROMPTS])
    mean, scale = vectors.mean(0), vectors.std(0)
    known = torch.nn.functional.normalize((vectors - mean) / scale, dim=-1)
    width = vectors.shape[1]
    bias, temperature, familiar = torch.zeros(width), torch.tensor(0.1), torch.tensor(0.6)
    start = known[: len(routes) or experts].clone()
    router = PrototypeRouter(mean, scale, torch.eye(width), bias, start, temperature, known, familiar)
    entries = tuple(
        ExpertEntry(
            weights=weights,
            macs_share=costs.ratio(plan),
            macs=costs.of(plan).macs,
            parameters=costs.of(plan).parameters,
            traffic=1 / experts,
        )
        for plan in plans
    )
    manifest = Manifest(
        family=target.adapter.family,
        base=BaseEntry(name="test", denoiser=type(denoiser).__name__, config=config_digest(denoiser)),
        grain=grain,
        size=SizeEntry(height=size.height, width=size.width, text=24),
        router=RouterEntry(kind="prototypes", encoder="pipeline", model="text_encoder"),
        experts=entries,
        segments=segments,
        routes=tuple(RouteEntry(experts=route, macs_share=0.5, traffic=0.5) for route in routes),
        files={},
    )
    tensors = [None] * experts
    if weights == "lora":
        tensors = [_update(denoiser, structure, plan, i) for i, plan in enumerate(plans)]
    if weights == "full":
        from hasten.plugins.aptp.surgery import pruned

        tensors = [dict(pruned(denoiser, structure, plan).state_dict()) for plan in plans]
    shared = _update(denoiser, structure, None, 9) if weights == "shared" else None
    save_bundle(folder, manifest, router, tuple(map(Expert, plans, tensors)), denoiser, shared)
    return folder


def _update(unet, structure, plan, seed):
    """A random low-rank update of some layers of the (pruned) denoiser."""
    from hasten.plugins.aptp.surgery import pruned

    model = unet if plan is None else pruned(unet, structure, plan)
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and "blocks" in name:
            shape = module.weight.shape
            tensors[f"{name}.lora_A"] = 0.05 * torch.randn(2, *shape[1:], generator=noise)
            tensors[f"{name}.lora_B"] = 0.05 * torch.randn(shape[0], 2, generator=noise)
    tensors["conv_norm_out.bias"] = torch.randn(model.conv_norm_out.bias.shape, generator=noise)
    return tensors


@pytest.fixture(scope="session")
def bundle_folder(scenes_pipe, tmp_path_factory):
    """A bundle of plain slices."""
    return write_bundle(scenes_pipe, tmp_path_factory.mktemp("bundle"))
