"""The miniatures and the bundles that come with them, through the front door."""

import pytest
import torch

import hasten
from hasten._errors import HastenError
from hasten.pipelines import mini

from .conftest import PROMPTS
from .test_routing import experts_of, seeds

CALL = {"num_inference_steps": 4, "height": 64, "width": 64, "output_type": "latent", "guidance_scale": 2.0}


@pytest.fixture(scope="module", params=["mini/t2i-unet", "mini/t2i-dit"])
def model(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(model):
    pipe = hasten.load(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"bottleneck": {"scale": 0.5, "high_first": 1.0, "low_until": 0.5, "min_pixels": 16}},
        {"rettention": {"keep_ratio": 0.5, "warmup": 1, "min_tokens": 16}},
    ],
    ids=["alone", "bottleneck", "rettention"],
)
def test_the_shipped_bundle_is_the_default_and_composes(model, pipe, others):
    call = {**mini.recommended_call(model), **CALL}
    with hasten.accelerate(pipe, {"aptp": {}, **others}) as accel:
        together = pipe(list(PROMPTS), generator=seeds(6), **call).images
        report = accel.report()
        alone = [pipe(prompt, generator=seeds(6)[i], **call).images[0] for i, prompt in enumerate(PROMPTS)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-3)
    assert len(set(experts_of(report).values()) - {"base"}) > 1
    for name in others:
        assert any(name in step.facts for step in report.steps)


def test_other_weights_have_no_default_bundle():
    other = mini.load("mini/t2i-unet")
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.5)
    with pytest.raises(HastenError, match=r"aptp\.bundle=DIR"):
        hasten.plan(other, ["aptp"])


@pytest.mark.slow
def test_the_pictures_of_the_experts_show_what_was_asked_for(model, pipe):
    from hasten.pipelines.mini.scoring import AttributeScorer

    prompts = mini.prompts(24, seed=11, model=model)
    call = mini.recommended_call(model)
    with hasten.accelerate(pipe, ["aptp"]):
        images = pipe(prompts, generator=seeds(24), **call).images
    assert AttributeScorer().score(images, prompts).mean > 0.75
