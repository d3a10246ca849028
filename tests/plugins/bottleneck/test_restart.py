"""Restart mode: stage tables, shifts, switches, and every kind of scheduler."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES, baseline, call_kwargs

import hasten
from hasten._errors import ConfigError, HastenError, UnsupportedError
from hasten._target import Target
from hasten.plugins.bottleneck.config import RestartConfig, Stage
from hasten.plugins.bottleneck.restart import Transition, resize_clean
from hasten.plugins.bottleneck.staged import StageRun, staged_scheduler
from hasten.plugins.bottleneck.stages import PRESETS, PlannedStage, preset_for
from hasten.schedules.dct import dct_truncate
from hasten.schedules.resolution import stage_times

STAGES: list[dict[str, Any]] = [
    {"steps": 2},
    {"steps": 4, "scale": 0.5, "strength": 0.75},
    {"steps": 4, "strength": 0.5},
]
RESTART: dict[str, Any] = {"mode": "restart", "min_pixels": 1, "stages": STAGES}


def planned(*stages: Stage) -> list[PlannedStage]:
    return [PlannedStage((8, 8) if s.scale == 1 else (4, 4), 1.0 if s.scale == 1 else 2.0, s) for s in stages]


def flow_sigmas(run: StageRun) -> list[list[float]]:
    split = torch.split(run.sigmas()[:-1], [len(times) for times in run.times])
    return [stage.tolist() for stage in split]


SCHEDULERS = {
    "static": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    "linear": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
    "unipc": diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_schedulers_visit_the_papers_levels(preset, kind):
    run = StageRun(SCHEDULERS[kind], planned(*PRESETS[preset]))
    run.prepare("cpu", mu=1.15)
    for stage, sigmas in zip(PRESETS[preset], flow_sigmas(run)):
        expected = stage_times(stage.steps, stage.strength, stage.shift)
        assert sigmas == pytest.approx(expected[:-1], abs=2e-6)
    assert run.sigmas()[-1] == 0
    assert len(run.timesteps()) == sum(len(times) for times in run.times)


def test_stage_counts_of_the_paper():
    run = StageRun(SCHEDULERS["static"], planned(*PRESETS["flux"]))
    run.prepare("cpu", None)
    assert [len(times) for times in run.times] == [6, 16, 5]


@pytest.mark.parametrize(
    ("kind", "mu", "shift"), [("static", None, 3.0), ("unipc", None, 5.0), ("dynamic", 1.0, 2.71828)]
)
def test_without_a_shift_every_stage_keeps_the_pipelines_signal_to_noise_ratio(kind, mu, shift):
    run = StageRun(SCHEDULERS[kind], planned(Stage(steps=4), Stage(steps=4, scale=0.5), Stage(steps=4)))
    run.prepare("cpu", mu)
    high, low, again = flow_sigmas(run)
    assert high == again
    assert high == pytest.approx(stage_times(4, 1.0, shift)[:-1], abs=1e-4)
    assert low == pytest.approx(stage_times(4, 1.0, shift / 2)[:-1], abs=1e-4)


def test_dynamic_shift_that_nobody_computes_must_be_given():
    run = StageRun(SCHEDULERS["dynamic"], planned(Stage(steps=4), Stage(steps=4)))
    with pytest.raises(ConfigError, match="give every stage a shift"):
        run.prepare("cpu", None)


def test_a_diffusion_schedulers_shift_multiplies_its_noise_ratio():
    base = diffusers.DPMSolverMultistepScheduler()
    run = StageRun(base, planned(Stage(steps=6), Stage(steps=6, shift=2.0)))
    run.prepare("cpu", None)
    kept = base.alphas_cumprod.double()
    ratio = ((1 - kept) / kept).sqrt()
    own, shifted = (ratio[times.long()] for times in run.times)
    inner = own * 2 < ratio[-1]
    torch.testing.assert_close(shifted[inner], 2 * own[inner], rtol=0.02, atol=0)


def test_schedulers_without_custom_timesteps_cannot_be_shifted():
    run = StageRun(diffusers.DDIMScheduler(), planned(Stage(steps=6), Stage(steps=6, shift=2.0)))
    with pytest.raises(ConfigError, match="DDIMScheduler derives each timestep"):
        run.prepare("cpu", None)


def test_a_shift_that_merges_steps_is_refused():
    run = StageRun(
        diffusers.DPMSolverMultistepScheduler(), planned(Stage(steps=30), Stage(steps=30, shift=500.0))
    )
    with pytest.raises(ConfigError, match="same timestep"):
        run.prepare("cpu", None)


def test_the_staged_scheduler_looks_like_the_original():
    base = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = vars(base).copy()
    run = StageRun(base, planned(Stage(steps=3), Stage(steps=3)))
    staged = staged_scheduler(base, run)
    assert isinstance(staged, diffusers.FlowMatchEulerDiscreteScheduler)
    assert type(staged).__name__ == "FlowMatchEulerDiscreteScheduler"
    for method in ("set_timesteps", "step"):
        assert inspect.signature(getattr(staged, method)) == inspect.signature(getattr(base, method))
    staged.set_begin_index(1)
    staged.set_shift(7.0)
    staged.set_timesteps(5, device="cpu")
    assert staged.num_inference_steps == 6
    assert len(staged.sigmas) == 7
    assert vars(base) == before


def test_stepping_before_timesteps_are_set_is_an_error():
    base = diffusers.DDIMScheduler()
    staged = staged_scheduler(base, StageRun(base, planned(Stage(steps=3), Stage(steps=3))))
    with pytest.raises(HastenError, match="before setting timesteps"):
        staged.step(torch.zeros(1), 0, torch.zeros(1))


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd3", SCHEDULERS["unipc"]),
        (
            "wan",
            diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        ),
        ("wan", diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)),
        ("sdxl", diffusers.EulerDiscreteScheduler()),
        ("sdxl", diffusers.DPMSolverMultistepScheduler()),
        ("sdxl", diffusers.UniPCMultistepScheduler()),
        ("cogvideox-rope", diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction")),
        ("cogvideox-rope", diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")),
        ("pixart-sigma", diffusers.DDIMScheduler()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize(
    "options", [RESTART, {"low_until": 0.4, "min_pixels": 1}], ids=["restart", "continuous"]
)
def test_every_kind_of_scheduler_steps_through(family, scheduler, options):
    pipe = FAMILIES[family]()
    pipe.scheduler = scheduler
    with hasten.accelerate(pipe, {"bottleneck": options}) as acceleration:
        output = baseline(pipe, family, num_inference_steps=4)
        sizes = {step.resolution[-2:] for step in acceleration.report().steps}
    assert torch.isfinite(output).all()
    assert sizes == {(8, 12), (4, 6)}
    assert pipe.scheduler is scheduler


def test_a_solver_that_calls_twice_per_step_runs_in_continuous_mode_only():
    pipe = FAMILIES["sd3"]()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    with hasten.accelerate(pipe, {"bottleneck": {"low_until": 0.4, "min_pixels": 1}}):
        assert torch.isfinite(baseline(pipe, "sd3")).all()
    with pytest.raises(UnsupportedError, match="FlowMatchHeunDiscreteScheduler has no adjustable shift"):
        hasten.plan(pipe, {"bottleneck": RESTART})


def test_a_stage_that_begins_at_pure_noise_is_pointed_out():
    stages = [{"steps": 2}, {"steps": 3, "scale": 0.5, "strength": 0.8}, {"steps": 4, "strength": 0.5}]
    plan = hasten.plan(FAMILIES["sd3"](), {"bottleneck": {**RESTART, "stages": stages}})
    warnings = [finding.message for finding in plan.findings if finding.severity == "warning"]
    assert len(warnings) == 1
    assert "stages.1 starts from pure noise" in warnings[0]


def run_restart(**changes: Any) -> torch.Tensor:
    pipe = FAMILIES["flux"]()
    with hasten.accelerate(pipe, {"bottleneck": {**RESTART, **changes}}):
        return baseline(pipe, "flux")


def test_noise_comes_from_the_calls_generator_or_the_seed():
    assert torch.equal(run_restart(), run_restart())
    assert torch.equal(run_restart(seed=1), run_restart(seed=1))
    assert not torch.equal(run_restart(seed=1), run_restart(seed=2))
    assert not torch.equal(run_restart(seed=1, noise="shared"), run_restart(seed=1, noise="fresh"))


@pytest.mark.parametrize("changes", [{"resize": "nearest"}, {"resize": "bicubic"}, {"mix": "strength"}])
def test_each_option_changes_the_result(changes):
    assert not torch.equal(run_restart(**changes), run_restart())


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(4, 6), (16, 20)])
def test_resizing_keeps_constants_and_frames(mode, size):
    x = torch.full((2, 3, 5, 8, 12), 0.3)
    x[:, :, 2] = -1.0
    resized = resize_clean(x, size, mode)
    assert resized.shape == (2, 3, 5, *size)
    torch.testing.assert_close(resized[:, :, 2], torch.full((2, 3, *size), -1.0))
    torch.testing.assert_close(resized[:, :, 0], torch.full((2, 3, *size), 0.3))


def transition(**options: Any) -> Any:
    """A switch on plain (B, C, H, W) latents, from 8 x 12 to 4 x 6 and back."""
    pipe = FAMILIES["sd3"]()
    target = Target.of(pipe)
    made = Transition(RestartConfig(**{**RESTART, "seed": 0, **options}), target, None)
    kwargs = {"hidden_states": torch.zeros(2, 4, 8, 12), "timestep": torch.full((2,), 500.0)}
    step = SimpleNamespace(size=target.layout.size(pipe, kwargs))
    made.remember(SimpleNamespace(kwargs=kwargs, module=pipe.transformer, step=step))
    run = StageRun(
        pipe.scheduler, planned(Stage(steps=2), Stage(steps=8, scale=0.5, strength=0.6), Stage(steps=2))
    )
    run.prepare("cpu", None)
    run.stage = 1
    return made, run


def expected_noise() -> torch.Tensor:
    return torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))


def test_a_switch_mixes_to_the_level_the_next_stage_starts_at():
    made, run = transition()
    x = torch.randn(2, 4, 8, 12)
    level = float(run.times[1][0]) / 1000
    mixed = made(x, (8, 12), (4, 6), run)
    torch.testing.assert_close(
        mixed, (1 - level) * resize_clean(x, (4, 6), "lanczos") + level * expected_noise()
    )


def test_a_switch_may_mix_by_strength():
    made, run = transition(mix="strength")
    x = torch.randn(2, 4, 8, 12)
    mixed = made(x, (8, 12), (4, 6), run)
    torch.testing.assert_close(mixed, 0.4 * resize_clean(x, (4, 6), "lanczos") + 0.6 * expected_noise())


def test_shared_noise_is_one_field_at_every_size():
    made, run = transition(noise="shared")
    zero = torch.zeros(2, 4, 8, 12)
    level = float(run.times[1][0]) / 1000
    small = made(zero, (8, 12), (4, 6), run) / level
    run.stage = 2
    full = made(zero[..., :4, :6], (4, 6), (8, 12), run) / (float(run.times[2][0]) / 1000)
    torch.testing.assert_close(small, dct_truncate(full, 4, 6))


def test_a_stage_may_hand_over_its_estimate_where_the_next_one_starts():
    stages = planned(*PRESETS["flux"])
    run = StageRun(SCHEDULERS["static"], stages, hand_over_estimate=True)
    run.prepare("cpu", None)
    firsts = [sigmas[0] for sigmas in flow_sigmas(run)]
    for sigmas, following in zip(flow_sigmas(run), firsts[1:]):
        assert sigmas[-1] > following
    assert [len(times) for times in run.times] == [3, 3, 5] or sum(map(len, run.times)) < 27


@pytest.mark.parametrize("return_dict", [True, False])
def test_the_estimate_is_that_of_a_step_to_zero(return_dict):
    base = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    run = StageRun(base, planned(Stage(steps=4), Stage(steps=4, strength=0.5)), hand_over_estimate=True)
    run.switch = lambda sample, *_: sample
    staged = staged_scheduler(base, run)
    staged.set_timesteps(8)
    x, v = torch.randn(2, 1, 4, 8, 8).unbind(0)
    for time in staged.timesteps[: len(run.times[0])]:
        before = x
        result = staged.step(v, time, x, return_dict=return_dict)
        x = result.prev_sample if return_dict else result[0]
    last = float(run.times[0][-1]) / 1000
    torch.testing.assert_close(x, before - last * v)
    assert run.stage == 1


def test_the_estimate_option_runs_fewer_steps():
    pipe = FAMILIES["flux"]()
    with hasten.accelerate(pipe, {"bottleneck": {**RESTART, "switch": "x0"}}) as acceleration:
        assert torch.isfinite(baseline(pipe, "flux")).all()
        steps = len(acceleration.report().steps)
    plan = hasten.plan(pipe, {"bottleneck": {**RESTART, "switch": "x0"}}, **call_kwargs("flux"))
    assert steps == len(plan.techniques[0].forecast.steps) < 8


@pytest.mark.parametrize("changes", [{"switch": "x0"}, {"mix": "strength"}])
def test_flow_options_are_refused_elsewhere(changes):
    with pytest.raises(UnsupportedError, match="flow-matching schedulers only"):
        hasten.plan(FAMILIES["sdxl"](), {"bottleneck": {**RESTART, **changes}})


def test_published_stages_are_found_by_model():
    dev, schnell = FAMILIES["flux"](), FAMILIES["flux"]()
    schnell.transformer.register_to_config(guidance_embeds=False)
    assert preset_for(Target.of(dev)) == PRESETS["flux"]
    assert preset_for(Target.of(schnell)) is None
    assert preset_for(Target.of(FAMILIES["hunyuan-video"]())) == PRESETS["hunyuan-video"]
    with pytest.raises(UnsupportedError, match="and HunyuanVideo only"):
        hasten.plan(FAMILIES["sd3"](), {"bottleneck": {"mode": "restart", "min_pixels": 1}})


def test_the_papers_stages_run():
    pipe = FAMILIES["flux"]()
    with hasten.accelerate(pipe, {"bottleneck": {"mode": "restart", "min_pixels": 1}}) as acceleration:
        baseline(pipe, "flux")
        steps = acceleration.report().steps
    assert [step.resolution for step in steps] == [(8, 12)] * 6 + [(4, 6)] * 16 + [(8, 12)] * 5
    low = [step.level for step in steps if step.resolution == (4, 6)]
    assert low == pytest.approx(stage_times(20, 0.8, 6.0)[:-1], abs=1e-4)
