"""What timestep arguments mean."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from hasten._adapters.paths import FlowPath, VariancePreservingPath
from hasten._errors import UnsupportedError
from hasten.extend import Prediction
from hasten.schedules.noise import NoiseLevel


def pipe_with(scheduler: Any, steps: int = 0) -> Any:
    if steps:
        scheduler.set_timesteps(steps)
    return SimpleNamespace(scheduler=scheduler)


def flow_unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_flow_timesteps_get_the_solvers_own_sigma(dtype: torch.dtype) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = pipe_with(scheduler, 28)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        told = timestep.expand(2).to(dtype) / 1000  # as the FLUX loop does
        assert FlowPath(scale=1.0).level(pipe, told).sigma == float(sigma)


def test_integer_flow_timesteps_get_the_solvers_own_sigma() -> None:
    scheduler = flow_unipc()
    pipe = pipe_with(scheduler, 20)
    assert scheduler.timesteps.dtype == torch.int64
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        assert FlowPath().level(pipe, timestep).sigma == float(sigma)
    # Wan's TI2V multiplies them with a float mask, and clean tokens have time 0.
    tokens = torch.tensor([0.0, 1.0]) * scheduler.timesteps[3]
    assert FlowPath().level(pipe, tokens).sigma == float(scheduler.sigmas[3])


@pytest.mark.parametrize("path", [FlowPath(), FlowPath(scale=1.0), FlowPath(scale=1.0, data_fraction=True)])
@pytest.mark.parametrize("time", [1.0, 0.8123, 0.01])
def test_flow_times_outside_the_table_round_trip(path: FlowPath, time: float) -> None:
    pipe = pipe_with(flow_unipc(), 7)
    told = torch.tensor([path.timestep(pipe, NoiseLevel.flow(time))])
    assert path.level(pipe, told).sigma == pytest.approx(time, abs=1e-6)


def test_data_fraction_reverses_time_and_sign() -> None:
    path, pipe = FlowPath(scale=1.0, data_fraction=True), pipe_with(flow_unipc())
    assert path.timestep(pipe, NoiseLevel.flow(0.75)) == pytest.approx(0.25)
    assert path.prediction(pipe) is Prediction.NEGATIVE_VELOCITY
    assert FlowPath().prediction(pipe) is Prediction.VELOCITY


@pytest.mark.parametrize("zero_snr", [False, True])
def test_vp_levels_are_the_table(zero_snr: bool) -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=zero_snr)
    path, pipe = VariancePreservingPath(), pipe_with(scheduler)
    for index in (0, 1, 500, 998, 999):
        level = path.level(pipe, torch.tensor([index, index]))
        assert level.alpha == pytest.approx(math.sqrt(scheduler.alphas_cumprod[index]), abs=1e-7)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1.0)
        assert path.timestep(pipe, level) == pytest.approx(index, abs=1e-3)
    between = path.level(pipe, torch.tensor(998.5))
    assert (
        path.level(pipe, torch.tensor(998)).sigma < between.sigma < path.level(pipe, torch.tensor(999)).sigma
    )


def test_vp_level_of_equal_noise_ratio() -> None:
    pipe = pipe_with(diffusers.DDIMScheduler())
    path = VariancePreservingPath()
    level = path.level(pipe, torch.tensor(800))
    ratio = level.sigma / (2 * level.alpha)
    alpha = 1 / math.hypot(1, ratio)
    low = path.level(pipe, torch.tensor(path.timestep(pipe, NoiseLevel(alpha, alpha * ratio))))
    assert low.sigma / low.alpha == pytest.approx(ratio, rel=1e-5)


def test_vp_prediction_follows_the_scheduler() -> None:
    path = VariancePreservingPath()
    assert path.prediction(pipe_with(diffusers.DDIMScheduler())) is Prediction.EPSILON
    velocity = diffusers.DDIMScheduler(prediction_type="v_prediction")
    assert path.prediction(pipe_with(velocity)) is Prediction.VP_VELOCITY


@pytest.mark.parametrize(
    ("path", "scheduler", "message"),
    [
        (
            VariancePreservingPath(),
            diffusers.DDIMScheduler(prediction_type="sample"),
            "prediction_type='sample'",
        ),
        (VariancePreservingPath(), diffusers.FlowMatchEulerDiscreteScheduler(), "not variance preserving"),
        (VariancePreservingPath(), flow_unipc(), "not variance preserving"),
        (FlowPath(), diffusers.DDIMScheduler(), "not a flow-matching scheduler"),
        (FlowPath(), diffusers.UniPCMultistepScheduler(), "use_flow_sigmas=True"),
    ],
)
def test_scheduler_of_another_path_is_refused(path: Any, scheduler: Any, message: str) -> None:
    assert message in (path.refusal(pipe_with(scheduler)) or "")


def test_prediction_of_an_unsupported_type_raises() -> None:
    pipe = pipe_with(diffusers.DDIMScheduler(prediction_type="sample"))
    with pytest.raises(UnsupportedError, match="epsilon, v_prediction"):
        VariancePreservingPath().prediction(pipe)
