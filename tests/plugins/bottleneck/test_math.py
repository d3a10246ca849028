import itertools
import math

import pytest
import torch
from gaussian import IdealDenoiser, Toy, from_coefficients, power_of, to_coefficients
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten._adapters.base import Prediction
from hasten.plugins.bottleneck.math import (
    clean_estimate,
    expand_prediction,
    low_state,
    path_of,
    prediction_at,
    runs_low,
)
from hasten.schedules.dct import dct_expand, dct_truncate
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.resolution import lower_time, shift_time

KINDS = list(Prediction)


def level_of(prediction: Prediction, time: float) -> NoiseLevel:
    """The level at flow-equivalent ``time`` on the path of ``prediction``."""
    norm = math.hypot(1 - time, time)
    return (
        NoiseLevel.flow(time) if path_of(prediction) == "flow" else NoiseLevel((1 - time) / norm, time / norm)
    )


def true_output(prediction: Prediction, x0, noise, level):
    """What the model was trained to return, by definition."""
    return {
        Prediction.VELOCITY: noise - x0,
        Prediction.NEGATIVE_VELOCITY: x0 - noise,
        Prediction.EPSILON: noise,
        Prediction.VP_VELOCITY: level.alpha * noise - level.sigma * x0,
    }[prediction]


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("time", [0.05, 0.5, 0.98])
def test_conversions_match_the_definitions(prediction, time):
    x0, noise = torch.randn(2, 3, 8, 8, dtype=torch.float64).unbind(0)
    level = level_of(prediction, time)
    x = level.alpha * x0 + level.sigma * noise
    output = true_output(prediction, x0, noise, level)
    torch.testing.assert_close(clean_estimate(prediction, x, output, level), x0)
    torch.testing.assert_close(prediction_at(prediction, x, x0, level), output)


@pytest.mark.parametrize("prediction", [kind for kind in KINDS if kind is not Prediction.EPSILON])
def test_pure_noise_stays_finite(prediction):
    level = NoiseLevel(0.0, 1.0)
    x, output = torch.randn(2, 1, 2, 8, 8).unbind(0)
    y, low = low_state(x, level, (4, 4), path_of(prediction))
    assert low == level
    torch.testing.assert_close(y, dct_truncate(x, 4, 4))
    result = expand_prediction(prediction, x, level, y, low, dct_truncate(output, 4, 4))
    assert torch.isfinite(result).all()


def test_where_the_formulas_are_undefined_the_step_stays_high():
    assert not runs_low(Prediction.EPSILON, NoiseLevel(0.0, 1.0))
    assert runs_low(Prediction.VP_VELOCITY, NoiseLevel(0.0, 1.0))
    for prediction in KINDS:
        assert not runs_low(prediction, NoiseLevel(1.0, 0.0))
        assert runs_low(prediction, NoiseLevel(0.6, 0.8))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 0.99), st.sampled_from(KINDS), st.integers(4, 10), st.integers(4, 10))
def test_low_state_is_a_valid_state_at_its_level(time, prediction, height, width):
    """``y' = alpha' x0_low + sigma' eps_low`` with the picture in natural amplitude and the noise truncated."""
    x0, noise = torch.randn(
        2, 1, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).unbind(0)
    level = level_of(prediction, time)
    r = math.sqrt(100 / (height * width))
    y, low = low_state(level.alpha * x0 + level.sigma * noise, level, (height, width), path_of(prediction))
    expected = low.alpha * dct_truncate(x0, height, width) / r + low.sigma * dct_truncate(
        noise, height, width
    )
    torch.testing.assert_close(y, expected)
    assert low.time == pytest.approx(lower_time(level.time, r))


@pytest.mark.parametrize("prediction", KINDS)
def test_a_perfect_low_model_gives_the_perfect_prediction_of_a_band_limited_picture(prediction):
    small = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    x0, noise = 2 * dct_expand(small, 6, 10), torch.randn(1, 2, 6, 10, dtype=torch.float64)
    level = level_of(prediction, 0.6)
    x = level.alpha * x0 + level.sigma * noise
    y, low = low_state(x, level, (3, 5), path_of(prediction))
    low_noise = (y - low.alpha * small) / low.sigma
    output = true_output(prediction, small, low_noise, low)
    result = expand_prediction(prediction, x, level, y, low, output)
    torch.testing.assert_close(result, true_output(prediction, x0, noise, level))


@pytest.mark.parametrize("prediction", KINDS)
def test_guidance_commutes_with_the_expansion(prediction):
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    cond, uncond = torch.randn(2, 1, 2, 4, 4, dtype=torch.float64).unbind(0)
    level = level_of(prediction, 0.7)
    y, low = low_state(x, level, (4, 4), path_of(prediction))

    def expand(output):
        return expand_prediction(prediction, x, level, y, low, output, taper=1)

    guided = expand(uncond + 4.5 * (cond - uncond))
    torch.testing.assert_close(guided, expand(uncond) + 4.5 * (expand(cond) - expand(uncond)))


def test_learned_variance_is_enlarged_in_its_own_amplitude():
    x, variance = torch.randn(1, 2, 8, 8), torch.full((1, 2, 4, 4), 0.7)
    level = level_of(Prediction.EPSILON, 0.7)
    y, low = low_state(x, level, (4, 4), "vp")
    result = expand_prediction(
        Prediction.EPSILON, x, level, y, low, torch.cat([torch.randn(1, 2, 4, 4), variance], 1)
    )
    assert result.shape == (1, 4, 8, 8)
    torch.testing.assert_close(result[:, 2:], torch.full((1, 2, 8, 8), 0.7))


def test_frames_are_left_alone():
    x = torch.randn(1, 2, 3, 8, 8)
    y, _ = low_state(x, NoiseLevel.flow(0.8), (4, 6), "flow")
    assert y.shape == (1, 2, 3, 4, 6)
    torch.testing.assert_close(y[:, :, 1], low_state(x[:, :, 1], NoiseLevel.flow(0.8), (4, 6), "flow")[0])


@pytest.mark.parametrize("low", [32, 24])
def test_euler_follows_the_low_solver_in_the_low_band(low):
    """Mechanism V on a full grid, against Euler run directly on the small grid at the lowered times."""
    toy = Toy(full=48, low=low)
    times = [shift_time(1 - j / 20, 3.0) for j in range(20)] + [0.0]
    x = torch.randn(1, 2, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = dct_truncate(x, low, low)
    small = IdealDenoiser(power_of(toy.spectrum, low, toy.ratio))
    for time, following in itertools.pairwise(times):
        x = x + (following - time) * toy.velocity(x, time, low=True)
        low_time, low_following = lower_time(time, toy.ratio), lower_time(following, toy.ratio)
        y = y + (low_following - low_time) * small.velocity(y, low_time)
        c = 1 / ((1 - following) * toy.ratio + following)
        torch.testing.assert_close(c * dct_truncate(x, low, low), y, atol=1e-4, rtol=1e-4)


def test_the_high_band_keeps_its_noise_at_the_current_level():
    toy = Toy(full=32, low=16)
    x = torch.randn(1, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stepped = x + (0.7 - 1.0) * toy.velocity(x, 1.0, low=True)
    stepped = stepped + (0.5 - 0.7) * toy.velocity(stepped, 0.7, low=True)
    high = torch.ones(32, 32, dtype=torch.bool)
    high[:16, :16] = False
    torch.testing.assert_close(to_coefficients(stepped)[..., high], 0.5 * to_coefficients(x)[..., high])


BASELINE = {
    50: [-0.3, -0.4, -0.4, -0.6, -0.8],
    25: [-0.7, -0.8, -1.1, -1.2, -1.6],
    17: [-0.8, -1.2, -1.5, -1.8, -2.3],
}


@pytest.mark.parametrize("steps", BASELINE)
def test_plain_step_reduction_reproduces_the_known_band_errors(steps):
    toy = Toy()
    gains, cost = toy.gains(steps, 3.0, high_first=-1.0, low_until=0.0)
    assert cost == steps
    assert toy.band_errors(gains**2) == pytest.approx(BASELINE[steps], abs=0.25)


@pytest.mark.parametrize(("high_first", "cost"), [(1.0, 3.0), (0.98, 2.77)])
def test_at_three_times_fewer_flops_it_beats_plain_step_reduction_in_every_band(high_first, cost):
    toy = Toy()
    plain, plain_cost = toy.gains(17, 3.0, high_first=-1.0, low_until=0.0)
    gains, low_cost = toy.gains(28, 3.0, high_first, low_until=0.718)
    assert 50 / low_cost == pytest.approx(cost, abs=0.05)
    if high_first == 1.0:
        assert low_cost < plain_cost
    for ours, theirs in zip(toy.band_errors(gains**2), toy.band_errors(plain**2)):
        assert abs(ours) < abs(theirs)


def test_the_switch_at_the_critical_level_costs_almost_nothing():
    toy = Toy()
    plain, _ = toy.gains(50, 3.0, high_first=-1.0, low_until=0.0)
    gains, _ = toy.gains(50, 3.0, 1.0, low_until=0.718)
    for ours, theirs in zip(toy.band_errors(gains**2), toy.band_errors(plain**2)):
        assert abs(ours - theirs) < 0.15


def test_the_toy_is_diagonal():
    """One field of unit coefficients stands for all: the assumption behind the exact band errors."""
    toy = Toy(full=16, low=8)
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ones = from_coefficients(torch.ones(1, 1, 16, 16, dtype=torch.float64))
    gain = to_coefficients(toy.velocity(ones, 0.8, low=True))
    torch.testing.assert_close(to_coefficients(toy.velocity(x, 0.8, low=True)), gain * to_coefficients(x))
