"""The power spectrum of a model's latents as a power law, and its fit.

Latents of natural images have a power that falls with frequency, ``P(w) = A w^-beta``, where ``w`` counts cycles
per image and ``P`` is the variance of an orthonormal cosine coefficient (white noise of variance 1 has ``P = 1``).
Where noise drowns ``P(w)``, that frequency carries nothing a denoiser could use.

Source: SPEED, arXiv 2605.18736.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hasten.schedules.dct import apply_separable, cosine_basis

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Spectrum", "fit_spectrum", "radial_power"]


_ROUNDING = 1e-12
"""Power, relative to that of all latents, which is nothing but rounding."""


@dataclass(frozen=True)
class Spectrum:
    """Power law ``P(w) = A w^-beta`` of latents in the units the denoiser sees.

    Args:
        amplitude: ``A``, positive: power at one cycle per image.
        exponent: ``beta``, at least 0.
    """

    amplitude: float
    exponent: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amplitude) and self.amplitude > 0):
            raise ValueError(f"a spectrum's A must be positive and finite, got {self.amplitude}")
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise ValueError(f"a spectrum's beta must be at least 0 and finite, got {self.exponent}")

    def power(self, frequency: float) -> float:
        """Variance of an orthonormal cosine coefficient at ``frequency`` (cycles per image, positive)."""
        return self.amplitude * float(frequency**-self.exponent)


def radial_power(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean power of the cosine coefficients in rings of one cycle per image.

    Args:
        latents: (N, C, H, W), floating point, in the denoiser's units.

    Returns:
        ``(frequency, power)``, both (min(H, W) // 2,) in double precision: mean frequency and mean power of the rings
        around 1, 2, ... cycles per (short side of the) image. The mean of each image and channel does not count.
    """
    if latents.ndim != 4 or not latents.is_floating_point():
        raise ValueError(
            f"latents must be floating point (N, C, H, W), got {tuple(latents.shape)}, {latents.dtype}"
        )
    height, width = latents.shape[-2:]
    short = min(height, width)
    if short < 8:
        raise ValueError(f"a spectrum needs latents of at least 8 x 8, got {height} x {width}")
    if not torch.isfinite(latents).all():
        raise ValueError("latents contain Inf or NaN: the autoencoder overflowed, run it in single precision")
    bases = [cosine_basis(size, torch.float64, latents.device) for size in (height, width)]
    power = apply_separable(latents.double(), *bases).square().mean(dim=(0, 1)).flatten()
    rows = torch.arange(height, dtype=torch.float64, device=latents.device) / (2 * height)
    columns = torch.arange(width, dtype=torch.float64, device=latents.device) / (2 * width)
    frequency = (short * torch.hypot(rows[:, None], columns)).flatten()
    ring = frequency.round().long()
    sums = torch.zeros(3, int(ring.max()) + 1, dtype=torch.float64, device=latents.device)
    sums.index_add_(1, ring, torch.stack([frequency, power, torch.ones_like(power)]))
    total_frequency, total_power, count = sums[:, 1 : short // 2 + 1]
    return total_frequency / count, total_power / count


def fit_spectrum(latents: Tensor) -> Spectrum:
    """Least-squares line through log power over log frequency, every ring of one cycle counting equally.

    That weights the upper octave most, where the power at the edge of a low grid is read off. The first ring is left
    out: it is as wide as its frequency, so its mean power is not the power at its mean.

    Args:
        latents: (N, C, H, W) of real images, floating point, in the denoiser's units; about 100 images are enough.

    Raises:
        ValueError: on Inf or NaN, on constant latents, and where power does not fall with frequency.
    """
    frequency, power = (values[1:] for values in radial_power(latents))
    if power.min() <= _ROUNDING * latents.double().square().mean():
        raise ValueError(
            "latents are constant in some frequency band: fit on photographs, not on flat images"
        )
    x, y = frequency.log(), power.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    if slope > 0:
        raise ValueError(
            f"power grows with frequency (beta = {-slope:.3f}): these are not latents of natural images"
        )
    return Spectrum(float((y.mean() - slope * x.mean()).exp()), float(-slope))
