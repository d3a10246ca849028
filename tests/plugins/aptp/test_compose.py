"""APTP with the other techniques: every group of prompts is a run of its own, with fresh state."""

import torch

import hasten

from .conftest import PROMPTS
from .test_routing import experts_of, seeds

CALL = {"num_inference_steps": 4, "height": 64, "width": 64, "output_type": "latent", "guidance_scale": 2.0}


def together_and_alone(pipe, config):
    """A routed batch, its prompts alone, and the report of the batch."""
    with hasten.accelerate(pipe, config) as accel:
        together = pipe(list(PROMPTS), generator=seeds(6), **CALL).images
        report = accel.report()
        alone = [pipe(prompt, generator=seeds(6)[i], **CALL).images[0] for i, prompt in enumerate(PROMPTS)]
    return together, torch.stack(alone), report


def test_with_bottleneck_sampling(scenes_pipe, bundle_folder):
    low = {"scale": 0.5, "high_first": 1.0, "low_until": 0.5, "min_pixels": 16}
    config = {"aptp": {"bundle": str(bundle_folder)}, "bottleneck": low}
    together, alone, report = together_and_alone(scenes_pipe, config)
    assert torch.allclose(together, alone, atol=1e-3)
    assert len(set(experts_of(report).values())) > 1
    runs = {step.run for step in report.steps}
    for run in runs:  # every group has its own small steps
        assert {step.resolution for step in report.steps if step.run == run} == {(16, 16), (8, 8)}


def test_with_rettention(scenes_pipe, bundle_folder):
    config = {
        "aptp": {"bundle": str(bundle_folder)},
        "rettention": {"keep_ratio": 0.5, "warmup": 1, "min_tokens": 16},
    }
    together, alone, report = together_and_alone(scenes_pipe, config)
    assert torch.allclose(together, alone, atol=1e-3)
    assert len({step.run for step in report.steps}) > 1
    assert any("rettention" in step.facts for step in report.steps)
