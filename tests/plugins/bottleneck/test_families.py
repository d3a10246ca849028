"""Every family under both modes: what the denoiser sees is what was planned, and nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, LATENT, baseline, call_kwargs

import hasten
from hasten._errors import UnsupportedError
from hasten._target import Target
from hasten.plugins.bottleneck.config import RestartConfig
from hasten.plugins.bottleneck.restart import findings

LOW = (LATENT[0] // 2, LATENT[1] // 2)
CONTINUOUS = {"low_until": 0.3, "high_first": 1.0, "min_pixels": 1}
RESTART: dict[str, Any] = {
    "mode": "restart",
    "min_pixels": 1,
    "stages": [{"steps": 2}, {"steps": 4, "scale": 0.5, "strength": 0.75}, {"steps": 4, "strength": 0.5}],
}


def restarts(name: str) -> bool:
    target = Target.of(FAMILIES[name]())
    found = findings(RestartConfig(**RESTART), target)
    return not any(finding.severity == "error" for finding in found) and "image" not in call_kwargs(name)


def observed(report: Any) -> list[tuple[tuple[int, int], float]]:
    """Resolution and level of each step, the forwards of one step counted once."""
    rows: list[tuple[tuple[int, int], float]] = []
    for step in report.steps:
        row = (step.resolution[-2:], round(step.level, 3))
        if not rows or rows[-1] != row:
            rows.append(row)
    return rows


def planned(
    pipe: Any, options: dict[str, Any], arguments: dict[str, Any]
) -> list[tuple[tuple[int, int], float]]:
    forecast = hasten.plan(pipe, {"bottleneck": options}, **arguments).techniques[0].forecast
    assert forecast is not None
    return [(step.size, round(step.level, 3)) for step in forecast.steps]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    name = request.param
    pipe = FAMILIES[name]()
    return name, pipe, baseline(pipe, name)


def fingerprint(pipe: Any) -> Any:
    modules = [
        m for part in pipe.components.values() if isinstance(part, torch.nn.Module) for m in part.modules()
    ]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in modules]
    return type(pipe), sorted(vars(pipe)), id(pipe.scheduler), type(pipe.scheduler), hooks


def test_low_steps_are_those_planned(family):
    name, pipe, expected = family
    before = fingerprint(pipe)
    scheduler = pipe.scheduler
    plan = planned(pipe, CONTINUOUS, call_kwargs(name))
    with hasten.accelerate(pipe, {"bottleneck": CONTINUOUS}) as acceleration:
        output = baseline(pipe, name)
        report = acceleration.report()
    assert output.shape == expected.shape
    assert torch.isfinite(output).all()
    assert not torch.equal(output, expected)
    assert observed(report) == plan
    assert LOW in {size for size, _ in plan}
    assert {step.facts["bottleneck"]["phase"] for step in report.steps if step.resolution[-2:] == LOW} == {
        "low"
    }
    assert fingerprint(pipe) == before
    assert pipe.scheduler is scheduler
    assert torch.equal(baseline(pipe, name), expected)


def test_an_empty_window_is_bit_identical(family):
    name, pipe, expected = family
    with hasten.accelerate(pipe, {"bottleneck": {"low_until": 1.0, "high_first": 0.5, "min_pixels": 1}}):
        assert torch.equal(baseline(pipe, name), expected)


def test_restart_stages_are_those_planned(family):
    name, pipe, expected = family
    if not restarts(name):
        pytest.skip("restart mode refuses it")
    before = fingerprint(pipe)
    scheduler, config = pipe.scheduler, dict(pipe.scheduler.config)
    plan = planned(pipe, RESTART, call_kwargs(name))
    with hasten.accelerate(pipe, {"bottleneck": RESTART}) as acceleration:
        output = baseline(pipe, name)
        rows = observed(acceleration.report())
    assert output.shape == expected.shape
    assert torch.isfinite(output).all()
    assert [size for size, _ in rows] == [size for size, _ in plan]
    assert [size for size, _ in plan] == [LATENT] * 2 + [LOW] * 3 + [LATENT] * 2
    assert [level for _, level in rows] == pytest.approx([level for _, level in plan], abs=2e-3)
    assert fingerprint(pipe) == before
    assert pipe.scheduler is scheduler
    assert dict(pipe.scheduler.config) == config
    assert torch.equal(baseline(pipe, name), expected)


def test_restart_covers_the_families_it_was_specified_for():
    for name in (
        "sd3",
        "flux",
        "pixart-sigma",
        "sana",
        "wan",
        "wan22-ti2v",
        "hunyuan-video",
        "ltx",
        "cogvideox-rope",
    ):
        assert restarts(name), name


@pytest.mark.parametrize("name", ["flux-img2img", "wan-i2v", "hunyuan-video-1.5", "ltx2", "z-image"])
def test_restart_refuses_what_builds_on_more_than_noise(name):
    with pytest.raises(UnsupportedError, match="mode='continuous'"):
        hasten.accelerate(FAMILIES[name](), {"bottleneck": RESTART})


def test_restart_refuses_a_given_picture():
    pipe = FAMILIES["flux-kontext"]()
    options = {**RESTART, "preset": None}
    with (
        hasten.accelerate(pipe, {"bottleneck": options}),
        pytest.raises(UnsupportedError, match=r"given picture \(image\)"),
    ):
        baseline(pipe, "flux-kontext")


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_half_precision_runs_and_keeps_its_type(name):
    pipe = FAMILIES[name]().to(torch.bfloat16)
    given = {
        key: value.bfloat16() if isinstance(value, torch.Tensor) else value
        for key, value in call_kwargs(name).items()
    }
    with hasten.accelerate(pipe, {"bottleneck": CONTINUOUS}):
        output = pipe(**given, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()


def test_an_exception_in_the_run_leaves_nothing_behind():
    pipe = FAMILIES["flux"]()
    before = fingerprint(pipe)

    def stop(*_: Any) -> Any:
        raise RuntimeError("enough")

    for options in (CONTINUOUS, RESTART):
        with hasten.accelerate(pipe, {"bottleneck": options}), pytest.raises(RuntimeError, match="enough"):
            baseline(pipe, "flux", callback_on_step_end=stop)
    assert type(pipe) is before[0]
    assert pipe.scheduler.__class__.__name__ == "FlowMatchEulerDiscreteScheduler"
    assert not hasattr(pipe.scheduler, "stage_run")


def test_the_expert_boundary_is_respected():
    pipe = FAMILIES["wan22-a14b"]()
    boundary = Target.of(pipe).layout.expert_boundary(pipe)
    assert boundary is not None
    wide = {**CONTINUOUS, "low_until": 0.05}
    free = planned(pipe, {**wide, "respect_expert_boundary": False}, call_kwargs("wan22-a14b"))
    careful = planned(pipe, wide, call_kwargs("wan22-a14b"))
    kept_high = [level for (a, level), (b, _) in zip(free, careful) if a != b]
    for level in kept_high:
        assert level >= boundary > level / (2 - level)


def test_every_batch_size_and_guidance_shares_one_schedule():
    pipe = FAMILIES["sd3"]()
    two = {
        name: torch.cat([value] * 2) for name, value in call_kwargs("sd3").items() if name.endswith("embeds")
    }
    with hasten.accelerate(pipe, {"bottleneck": CONTINUOUS}) as acceleration:
        for guidance in (1.0, 4.0):
            output = baseline(pipe, "sd3", **two, guidance_scale=guidance)
            assert len(output) == 2
            assert torch.isfinite(output).all()
            assert observed(acceleration.report()) == planned(pipe, CONTINUOUS, call_kwargs("sd3"))
