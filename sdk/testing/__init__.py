"""Tests that every technique and every adapter has to pass, as pytest classes. They need no GPU.

Subclass one in your tests and define a small pipeline; pytest runs the rest::

    class TestMine(hasten.testing.TechniqueContract):
        technique = MyTechnique
        exact = {"strength": 0.0}
        active = {"strength": 0.5}
        arguments = {"prompt_embeds": torch.zeros(1, 7, 32), "num_inference_steps": 3}

        def pipeline(self):
            return tiny_pipeline()

The pipeline may have random weights, but every call of :meth:`~PipelineContract.pipeline` has to return equal ones.
"""

from __future__ import annotations

from hasten.testing._adapters import AdapterContract
from hasten.testing._pipelines import PipelineContract
from hasten.testing._techniques import TechniqueContract

__all__ = ["AdapterContract", "PipelineContract", "TechniqueContract"]
