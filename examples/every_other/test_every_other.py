"""The technique keeps the contract of `hasten.testing`, and halves the work."""

from __future__ import annotations

from typing import ClassVar

from diffusers import DiffusionPipeline
from hasten_every_other import EveryOther

import hasten
from hasten.testing import TechniqueContract


class TestEveryOther(TechniqueContract):
    technique = EveryOther
    arguments: ClassVar = {
        "prompt": "a red circle",
        "height": 64,
        "width": 64,
        "num_inference_steps": 3,
        "max_sequence_length": 0,
    }
    resized: ClassVar = {"height": 96}

    def pipeline(self) -> DiffusionPipeline:
        return hasten.load("mini/t2i-dit")

    def test_every_other_forward_is_computed(self) -> None:
        pipe = self.pipeline()
        with self.accelerate(pipe, {}) as accel:
            self.call(pipe)
            computed = [step.resolution is not None for step in accel.report().steps]
        assert computed == [True, False, True]
