import math

import pytest
import torch

from hasten.schedules.dct import apply_separable, cosine_basis
from hasten.schedules.spectrum import Spectrum, fit_spectrum, radial_power


def field(amplitude: float, exponent: float, height: int, width: int, count: int = 64) -> torch.Tensor:
    """(count, 4, height, width) Gaussian latents with a known power law."""
    short = min(height, width)
    rows, columns = torch.arange(height) / (2 * height), torch.arange(width) / (2 * width)
    frequency = short * torch.hypot(rows[:, None], columns)
    deviation = (amplitude * frequency.clamp_min(0.5) ** -exponent).sqrt().double()
    noise = torch.randn(
        count, 4, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    bases = [cosine_basis(side, torch.float64).T for side in (height, width)]
    return apply_separable(noise * deviation, *bases)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
@pytest.mark.parametrize(("amplitude", "exponent"), [(200.0, 1.9), (50.0, 2.4)])
def test_fit_recovers_a_known_law(amplitude, exponent, height, width):
    fitted = fit_spectrum(field(amplitude, exponent, height, width))
    assert fitted.exponent == pytest.approx(exponent, abs=0.04)
    assert fitted.amplitude == pytest.approx(amplitude, rel=0.1)


def test_white_noise_has_power_one_everywhere():
    noise = torch.randn(64, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    frequency, power = radial_power(noise)
    torch.testing.assert_close(frequency, torch.arange(1.0, 17.0, dtype=torch.float64), atol=0.15, rtol=0)
    torch.testing.assert_close(power, torch.ones_like(power), atol=0.1, rtol=0)


def test_single_precision_and_half_precision_agree():
    latents = field(100.0, 2.0, 32, 32)
    assert fit_spectrum(latents.bfloat16()).exponent == pytest.approx(
        fit_spectrum(latents).exponent, abs=0.02
    )


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.full((1, 1, 16, 16), math.nan), "Inf or NaN"),
        (torch.full((1, 1, 16, 16), math.inf), "Inf or NaN"),
        (torch.zeros(1, 1, 16, 16), "constant"),
        (torch.zeros(1, 16, 16), r"\(N, C, H, W\)"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.int64), "floating point"),
        (torch.randn(1, 1, 4, 16), "at least 8 x 8"),
    ],
)
def test_bad_latents_are_named(latents, message):
    with pytest.raises(ValueError, match=message):
        fit_spectrum(latents)


def test_rising_power_is_refused():
    laplacian = field(1.0, 1.0, 64, 64)
    sharpened = laplacian.diff(dim=-1)[..., 1:, :62].diff(dim=-2)
    sharpened = sharpened.diff(dim=-1).diff(dim=-2)
    with pytest.raises(ValueError, match="power grows"):
        fit_spectrum(sharpened)


@pytest.mark.parametrize(
    ("amplitude", "exponent"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, -0.1), (1.0, math.inf)]
)
def test_bad_laws_are_named(amplitude, exponent):
    with pytest.raises(ValueError, match="spectrum's"):
        Spectrum(amplitude, exponent)
