"""The technique keeps the contract of `hasten.testing`."""

from __future__ import annotations

from typing import ClassVar

from diffusers import DiffusionPipeline
from hasten_guidance_interval import GuidanceInterval

import hasten
from hasten.testing import TechniqueContract


class TestGuidanceInterval(TechniqueContract):
    technique = GuidanceInterval
    active: ClassVar = {"stop": 0.9}
    exact: ClassVar = {"stop": 0.0}
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
