"""Denoisers of every family that can be pruned, with their structures."""

from dataclasses import dataclass
from typing import Any

import families
import pytest
import torch

from hasten._target import Target
from hasten.pipelines.adapters import LatentSize
from hasten.pipelines.adapters._units import Grain, PrunableUnits, Structure

PRUNABLE = ("sd15", "sdxl", "sd3", "flux", "pixart-sigma", "pixart-alpha", "qwen-image")
SIZE = LatentSize(8, 12)


@dataclass(frozen=True)
class Subject:
    """A tiny pipeline's denoiser and what is known of it."""

    name: str
    pipe: Any
    target: Target
    units: PrunableUnits
    denoiser: Any
    structure: Structure

    def inputs(self, batch=2):
        """Random arguments of a forward."""
        given = self.units.inputs(self.denoiser, SIZE, families.TEXT, batch)
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
        return denoiser(**inputs, return_dict=False)[0]


def make_subject(name):
    """The subject of a family."""
    pipe = families.FAMILIES[name]()
    target = Target.of(pipe)
    units = target.capability(PrunableUnits)
    denoiser = next(iter(target.denoisers.values()))
    return Subject(name, pipe, target, units, denoiser, units.structure(denoiser, Grain(ffn=8, align=1)))


@pytest.fixture(scope="module", params=PRUNABLE)
def subject(request):
    """Each family in turn."""
    return make_subject(request.param)
