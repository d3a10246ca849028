"""A world where everything is known: Gaussian latents with a power law, their ideal denoiser, Euler steps.

The ideal denoiser is linear and diagonal in the cosine basis, so one field with every coefficient 1 carries the gain
of all of them, and errors are exact instead of sampled. Independent noise adds in power.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten._adapters.base import Prediction
from hasten.plugins.bottleneck.math import expand_prediction, low_state
from hasten.schedules.dct import apply_separable, cosine_basis
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.resolution import shift_time
from hasten.schedules.spectrum import Spectrum

FLUX = Spectrum(203.615097, 1.915461)
BANDS = ((2, 16), (16, 30), (30, 34), (34, 48), (48, 64))
"""Cycles per image of a 128 x 128 latent whose low size is 64 x 64."""


def to_coefficients(x: Tensor) -> Tensor:
    bases = [cosine_basis(side, torch.float64) for side in x.shape[-2:]]
    return apply_separable(x, *bases)


def from_coefficients(x: Tensor) -> Tensor:
    bases = [cosine_basis(side, torch.float64).T for side in x.shape[-2:]]
    return apply_separable(x, *bases)


def frequencies(size: int) -> Tensor:
    """(size, size) cycles per image of the cosine coefficients."""
    axis = torch.arange(size, dtype=torch.float64) / 2
    return torch.hypot(axis[:, None], axis)


def power_of(spectrum: Spectrum, size: int, ratio: float = 1.0) -> Tensor:
    """(size, size) coefficient powers; on a grid smaller by amplitude ``ratio`` pictures have ``ratio**2`` less."""
    frequency = frequencies(size).clamp_min(0.5)
    return spectrum.amplitude * frequency**-spectrum.exponent / ratio**2


@dataclass(frozen=True)
class IdealDenoiser:
    """``E[v | x]`` for coefficients of the given power."""

    power: Tensor

    def clean(self, x: Tensor, level: NoiseLevel) -> Tensor:
        gain = level.alpha * self.power / (level.alpha**2 * self.power + level.sigma**2)
        return from_coefficients(gain * to_coefficients(x))

    def velocity(self, x: Tensor, time: float) -> Tensor:
        return (x - self.clean(x, NoiseLevel.flow(time))) / time


@dataclass(frozen=True)
class Toy:
    """Both sizes of one Gaussian world."""

    full: int = 128
    low: int = 64
    spectrum: Spectrum = FLUX

    @property
    def ratio(self) -> float:
        return self.full / self.low

    def velocity(self, x: Tensor, time: float, *, low: bool) -> Tensor:
        """The full denoiser, or the one at virtual resolution."""
        if not low:
            return IdealDenoiser(power_of(self.spectrum, self.full)).velocity(x, time)
        model = IdealDenoiser(power_of(self.spectrum, self.low, self.ratio))
        level = NoiseLevel.flow(time)
        y, low_level = low_state(x, level, (self.low, self.low), "flow")
        output = model.velocity(y, low_level.time)
        return expand_prediction(Prediction.VELOCITY, x, level, y, low_level, output)

    def gains(self, steps: int, shift: float, high_first: float, low_until: float) -> tuple[Tensor, float]:
        """Final gain of every coefficient that started as unit noise, and the cost in full-size forwards."""
        times = [shift_time(1 - j / steps, shift) for j in range(steps)] + [0.0]
        x = from_coefficients(torch.ones(1, 1, self.full, self.full, dtype=torch.float64))
        cost = 0.0
        for time, following in itertools.pairwise(times):
            low = low_until <= time <= high_first
            x = x + (following - time) * self.velocity(x, time, low=low)
            cost += 0.289 if low else 1.0
        return to_coefficients(x)[0, 0], cost

    def band_errors(self, power: Tensor) -> list[float]:
        """Error of generated coefficient powers in dB, per band."""
        frequency, wanted = frequencies(self.full), power_of(self.spectrum, self.full)
        masks = [(frequency >= start) & (frequency < stop) for start, stop in BANDS]
        return [float(10 * torch.log10(power[mask].sum() / wanted[mask].sum())) for mask in masks]
