"""From options to resolutions: windows, sizes, minimum, spectra, expert boundary."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline, call_kwargs
from hypothesis import given
from hypothesis import strategies as st

import hasten
from hasten._adapters.base import LatentSize, Prediction
from hasten._errors import CheckpointError, ConfigError, NumericalError
from hasten._target import Target
from hasten.plugins.bottleneck.config import ContinuousConfig
from hasten.plugins.bottleneck.levels import (
    FALLBACK_MIN_PIXELS,
    LowLevel,
    Resolutions,
    minimum_pixels,
    resolve,
    spectrum_for,
)
from hasten.plugins.bottleneck.spectra import known_spectrum
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.resolution import critical_time
from hasten.schedules.spectrum import Spectrum

FLOW = Prediction.VELOCITY


@pytest.fixture(scope="module")
def target():
    return Target.of(FAMILIES["flux"]())


def resolved(target: Target, height: int = 64, width: int = 64, **options: Any) -> Resolutions:
    return resolve(ContinuousConfig(**{"min_pixels": 1, **options}), target, LatentSize(height, width))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_window_is_closed_and_nothing_else_is_low(time, until, first):
    resolutions = Resolutions((64, 64), (LowLevel((32, 32), until),), first)
    low = resolutions.low_at(NoiseLevel.flow(time), FLOW)
    assert (low is not None) == (until <= time <= first and time > 0)


def test_several_switches_go_from_small_to_large():
    lows = (LowLevel((16, 16), 0.8), LowLevel((32, 32), 0.5), LowLevel((48, 48), 0.3))
    resolutions = Resolutions((64, 64), lows, 0.95)
    sizes = [resolutions.low_at(NoiseLevel.flow(time), FLOW) for time in (1.0, 0.9, 0.7, 0.4, 0.2)]
    assert sizes == [None, (16, 16), (32, 32), (48, 48), None]


def test_diffusion_levels_are_compared_on_the_same_axis():
    resolutions = Resolutions((64, 64), (LowLevel((32, 32), 0.7),), 1.0)
    level = NoiseLevel.vp(0.155)
    assert level.time == pytest.approx(0.7, abs=1e-3)
    assert resolutions.low_at(NoiseLevel.vp(0.15), Prediction.EPSILON) == (32, 32)
    assert resolutions.low_at(NoiseLevel.vp(0.16), Prediction.EPSILON) is None
    assert resolutions.low_at(NoiseLevel.vp(0.0), Prediction.EPSILON) is None
    assert resolutions.low_at(NoiseLevel.vp(0.0), Prediction.VP_VELOCITY) == (32, 32)


def test_no_expert_is_asked_below_its_boundary():
    resolutions = Resolutions((64, 64), (LowLevel((32, 32), 0.3),), 1.0, boundary=0.875)
    assert resolutions.low_at(NoiseLevel.flow(0.95), FLOW) == (32, 32)  # runs at .905
    assert resolutions.low_at(NoiseLevel.flow(0.90), FLOW) is None  # would run at .818
    assert resolutions.low_at(NoiseLevel.flow(0.87), FLOW) == (32, 32)  # the other expert's level anyway


def test_auto_follows_the_spectrum_and_delta(target):
    spectrum = Spectrum(203.615097, 1.915461)
    for delta in (0.05, 0.2):
        options = {"spectrum": (spectrum.amplitude, spectrum.exponent), "delta": delta}
        one = resolved(target, 128, 128, **options)
        assert one.lows == (LowLevel((64, 64), critical_time(spectrum, 32, delta)),)
    several = resolved(target, 128, 128, scale=[0.25, 0.5, 0.75], spectrum=(200.0, 1.9))
    assert [low.size for low in several.lows] == [(32, 32), (64, 64), (96, 96)]
    assert several.lows[0].until > several.lows[1].until > several.lows[2].until


def test_levels_may_be_given(target):
    assert resolved(target, low_until=0.6).lows[0].until == 0.6
    assert [low.until for low in resolved(target, scale=[0.5, 0.75], low_until=[0.7, 0.4]).lows] == [0.7, 0.4]


def test_sizes_may_be_given_in_pixels(target):
    """FLUX latents of the tiny pipeline have 2 pixels a side, tokens of 2 x 2 latent pixels."""
    assert resolved(target, 64, 96, scale=(64, 96)).lows[0].size == (32, 48)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((2, 2), {}, "cannot be scaled by 0.5"),
        ((64, 64), {"scale": (66, 64)}, "low height 66 is not a multiple of 4"),
        ((64, 64), {"scale": (64, 256)}, "low width 256 is above the picture's 128"),
        ((64, 64), {"scale": (128, 128)}, "full size already"),
        ((64, 64), {"scale": [0.75, 0.5]}, "from small to large"),
        ((64, 64), {"scale": [0.5, 0.501]}, "from small to large"),
        ((64, 64), {"min_pixels": 64 * 64 + 1}, "set min_pixels=4096"),
    ],
)
def test_impossible_sizes_are_explained(target, size, options, message):
    with pytest.raises(ConfigError, match=message):
        resolved(target, *size, **options)


def test_the_minimum_is_a_quarter_of_the_native_area(target):
    native = target.layout.call_size(target.pipe, target.call_arguments())
    height, width = target.layout.pixels(target.pipe, native)
    assert minimum_pixels(ContinuousConfig(), target) == height * width // 4
    assert minimum_pixels(ContinuousConfig(min_pixels=77), target) == 77


def test_a_native_size_that_does_not_halve_still_runs_at_the_default_scale():
    target = Target.of(FAMILIES["wan"]())
    native = target.layout.call_size(target.pipe, target.call_arguments())
    resolve(ContinuousConfig(low_until=0.5), target, native)


def test_pipelines_without_a_native_size_have_a_fixed_minimum():
    assert minimum_pixels(ContinuousConfig(), Target.of(FAMILIES["sd15-img2img"]())) == FALLBACK_MIN_PIXELS


def test_a_picture_that_is_too_small_is_refused_before_it_is_denoised():
    pipe = FAMILIES["flux"]()
    with (
        hasten.accelerate(pipe, {"bottleneck": {"low_until": 0.5}}),
        pytest.raises(ConfigError, match="below min_pixels"),
    ):
        baseline(pipe, "flux")
    with pytest.raises(ConfigError, match="below min_pixels"):
        hasten.plan(pipe, {"bottleneck": {"low_until": 0.5}}, **call_kwargs("flux"))


def autoencoder(kind: str, **config: Any) -> Any:
    return SimpleNamespace(config={}, vae=type(kind, (), {"config": config})())


@pytest.mark.parametrize(
    ("pipe", "amplitude"),
    [
        (
            autoencoder("AutoencoderKL", latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
            203.615097,
        ),
        (autoencoder("AutoencoderKLWan", z_dim=16), 219.484718),
        (autoencoder("AutoencoderKLWan", z_dim=48), None),
        (autoencoder("AutoencoderKL", latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609), None),
        (autoencoder("AutoencoderKL", latent_channels=4, scaling_factor=0.13025), None),
        (SimpleNamespace(config={}), None),
    ],
)
def test_published_spectra_are_recognised_by_the_autoencoder(pipe, amplitude):
    found = known_spectrum(pipe)
    assert (found.spectrum.amplitude if found else None) == amplitude


def test_a_models_own_spectrum_comes_first(tmp_path):
    pipe = autoencoder("AutoencoderKLWan", z_dim=16)
    pipe.config = {"_name_or_path": str(tmp_path)}
    assert known_spectrum(pipe).spectrum.amplitude == 219.484718
    (tmp_path / "hasten.json").write_text(json.dumps({"spectrum": {"A": 12.0, "beta": 1.5}}))
    assert known_spectrum(pipe).spectrum == Spectrum(12.0, 1.5)
    assert spectrum_for(ContinuousConfig(), pipe) == (Spectrum(12.0, 1.5), "hasten.json of the model")
    assert spectrum_for(ContinuousConfig(spectrum=(1.0, 2.0)), pipe)[0] == Spectrum(1.0, 2.0)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"spectrum": {"A": 1}}', '{"spectrum": {"A": -1, "beta": 1}}', '{"spectrum": 3}']
)
def test_a_damaged_sidecar_is_named(tmp_path, text):
    (tmp_path / "hasten.json").write_text(text)
    pipe = SimpleNamespace(config={"_name_or_path": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"hasten\.json: cannot read the spectrum"):
        known_spectrum(pipe)


def test_an_unknown_spectrum_is_bounded_and_reported():
    pipe = FAMILIES["sd3"]()
    plan = hasten.plan(pipe, ["bottleneck"])
    assert any("no power spectrum is known" in finding.message for finding in plan.findings)
    assert plan.techniques[0].forecast.facts["low_until"] == [pytest.approx(0.75, abs=1e-3)]
    quiet = hasten.plan(pipe, {"bottleneck": {"low_until": 0.7}})
    assert not quiet.findings


def test_a_window_that_can_hold_no_step_is_reported():
    plan = hasten.plan(FAMILIES["sd3"](), {"bottleneck": {"low_until": 0.9, "high_first": 0.5}})
    assert any("no step will run at low resolution" in finding.message for finding in plan.findings)


def test_inf_in_the_latents_stops_the_run():
    pipe = FAMILIES["sd3"]()
    broken = torch.full((1, pipe.transformer.config.in_channels, 8, 12), torch.inf)
    options = {"bottleneck": {"low_until": 0.3, "high_first": 1.0, "min_pixels": 1}}
    with hasten.accelerate(pipe, options), pytest.raises(NumericalError, match="bottleneck"):
        baseline(pipe, "sd3", latents=broken)
