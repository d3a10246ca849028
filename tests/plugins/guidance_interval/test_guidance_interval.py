"""Outside of the interval the conditional branch is computed alone; inside of it nothing changes."""

from __future__ import annotations

import pytest
import torch
from controls import controlled
from families import FAMILIES, baseline, call_kwargs

import hasten

FAMILY_NAMES = ["sd3", "wan", "sdxl", "ltx", "qwen-image"]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_outside_the_interval_it_equals_guidance_of_one(family: str) -> None:
    pipe = FAMILIES[family]()
    name = "true_cfg_scale" if "true_cfg_scale" in call_kwargs(family) else "guidance_scale"
    guided, plain = (baseline(pipe, family, **{name: scale}) for scale in (5.0, 1.0))
    assert not torch.allclose(guided, plain)
    with hasten.accelerate(pipe, {"guidance_interval": {"start": 0.0, "stop": 0.0}}) as accel:
        torch.testing.assert_close(baseline(pipe, family, **{name: 5.0}), plain, rtol=1e-3, atol=1e-4)
        assert {
            step.facts["guidance_interval"]["skipped"] for step in accel.report().steps if step.facts
        } == {"uncond"}
    with hasten.accelerate(pipe, {"guidance_interval": {"stop": 0.0}}):
        assert torch.equal(baseline(pipe, family, **{name: 5.0}), guided)


def test_the_conditional_half_may_be_the_first() -> None:
    pipe = FAMILIES["z-image"]()
    guided, plain = (baseline(pipe, "z-image", guidance_scale=scale) for scale in (5.0, 0.0))
    assert not torch.allclose(guided, plain)
    with hasten.accelerate(pipe, {"guidance_interval": {"start": 0.0, "stop": 0.0}}):
        torch.testing.assert_close(baseline(pipe, "z-image", guidance_scale=5.0), plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        "StableDiffusionControlNetPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "ZImageControlNetPipeline",
    ],
)
def test_control_features_are_halved_by_rows(case: str) -> None:
    pipe, given = controlled(case)
    neutral = 0.0 if case.startswith("ZImage") else 1.0

    def made(scale: float) -> torch.Tensor:
        seeded = {**given, "generator": torch.Generator().manual_seed(0)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            latents: torch.Tensor = pipe(**{**seeded, "guidance_scale": scale, "return_dict": False})[0]
        return latents

    guided, plain = made(5.0), made(neutral)
    with hasten.accelerate(pipe, {"guidance_interval": {"start": 0.0, "stop": 0.0}}):
        torch.testing.assert_close(made(5.0), plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(guided, plain)


def test_a_third_branch_is_refused_in_plan_and_call() -> None:
    pipe, given = controlled("StableDiffusionControlNetPAGPipeline")
    plan = hasten.plan(pipe, {"guidance_interval": {"stop": 0.9}}, **given)
    assert [finding.severity for finding in plan.findings] == ["error"]
    with (
        hasten.accelerate(pipe, {"guidance_interval": {"stop": 0.9}}),
        pytest.raises(hasten.UnsupportedError, match="computes a third branch"),
    ):
        pipe(**given)


def test_a_distilled_model_is_refused() -> None:
    with pytest.raises(hasten.UnsupportedError, match="guidance-distilled"):
        hasten.accelerate(FAMILIES["flux"](), ["guidance_interval"])


def test_options_are_checked() -> None:
    with pytest.raises(hasten.ConfigError, match=r"start \(0.1\) must not be below stop"):
        hasten.Config.of({"guidance_interval": {"start": 0.1, "stop": 0.2}})


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, {"guidance_scale": 1.0}, "without guidance"),
        ({"stop": 0.0}, {}, "every step of this call has a level in 0 to 1"),
    ],
)
def test_a_call_in_which_nothing_can_be_skipped_is_told(
    options: dict[str, float], changes: dict[str, float], message: str
) -> None:
    pipe = FAMILIES["sd3"]()
    arguments = {**call_kwargs("sd3"), **changes}
    plan = hasten.plan(pipe, {"guidance_interval": options}, **arguments)
    assert [finding.severity for finding in plan.findings] == ["warning"]
    assert message in plan.findings[0].message
    with hasten.accelerate(pipe, {"guidance_interval": options}) as accel:
        baseline(pipe, "sd3", **changes)
        assert any("no unconditional forward was skipped" in note for note in accel.report().notes)


def test_the_forecast_halves_the_steps_outside() -> None:
    pipe = FAMILIES["sd3"]()
    plan = hasten.plan(
        pipe, {"guidance_interval": {"stop": 0.9}}, **call_kwargs("sd3") | {"num_inference_steps": 4}
    )
    (forecast,) = (technique.forecast for technique in plan.techniques)
    assert forecast is not None
    costs = [step.flops for step in forecast.steps]
    assert [step.note for step in forecast.steps] == ["", "no guidance", "no guidance", "no guidance"]
    assert costs == [costs[0], *[costs[0] / 2] * 3]
    assert forecast.baseline_flops == 4 * costs[0]


def test_with_bottleneck_both_are_active() -> None:
    pipe = FAMILIES["sd3"]()
    plain = baseline(pipe, "sd3")
    config = {
        "bottleneck": {"low_until": 0.3, "high_first": 1.0, "min_pixels": 1},
        "guidance_interval": {"stop": 0.9},
    }
    with hasten.accelerate(pipe, config) as accel:
        made = baseline(pipe, "sd3")
        steps = accel.report().steps
    assert made.shape == plain.shape
    assert not torch.equal(made, plain)
    assert any(step.facts.get("bottleneck", {}).get("phase") == "low" for step in steps)
    assert any("guidance_interval" in step.facts for step in steps)
    assert torch.equal(baseline(pipe, "sd3"), plain)
