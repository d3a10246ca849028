"""The resolution of every noise level, resolved from the options for one latent size."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.extend import ConfigError, LatentSize, Prediction, call_size
from hasten.plugins.bottleneck.config import BottleneckConfig, ContinuousConfig, Scale
from hasten.plugins.bottleneck.learned import LearnedSpectrum, autoencoder_of, may_differ, recall
from hasten.plugins.bottleneck.math import runs_low
from hasten.plugins.bottleneck.spectra import UNKNOWN, known_spectrum
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.resolution import (
    ASPECT_TOLERANCE,
    amplitude_ratio,
    aspect_deviation,
    critical_time,
    lower_time,
    snap_size,
)
from hasten.schedules.spectrum import Spectrum

if TYPE_CHECKING:
    from hasten.extend import Pipeline, Target

__all__ = [
    "FALLBACK_MIN_PIXELS",
    "LowLevel",
    "Resolutions",
    "check_minimum",
    "low_size",
    "minimum_pixels",
    "resolve",
    "spectrum_for",
]

FALLBACK_MIN_PIXELS = 384 * 384
"""Smallest low resolution, in pixels, for a pipeline whose native size is unknown."""

_log = logging.getLogger("hasten")


@dataclass(frozen=True)
class LowLevel:
    """A low latent size (height, width), and the lowest flow time at which it may be used."""

    size: tuple[int, int]
    until: float


@dataclass(frozen=True)
class Resolutions:
    """The resolution of every noise level, for latents of one size.

    Args:
        full: height and width of the solver's latents.
        lows: low sizes, smallest first. A level uses the first one whose ``until`` it does not fall below.
        high_first: levels above this flow time stay at full resolution.
        boundary: flow time at which the pipeline changes denoisers; ``None`` if it does not matter.
    """

    full: tuple[int, int]
    lows: tuple[LowLevel, ...]
    high_first: float
    boundary: float | None = None

    def low_at(self, level: NoiseLevel, prediction: Prediction) -> tuple[int, int] | None:
        """The low size (height, width) for ``level``; ``None`` for full resolution."""
        time = level.time
        if time > self.high_first or not runs_low(prediction, level):
            return None
        low = next((low.size for low in self.lows if time >= low.until), None)
        if low is None or self.boundary is None or time < self.boundary:
            return low
        return low if lower_time(time, amplitude_ratio(self.full, low)) >= self.boundary else None


def resolve(config: ContinuousConfig, target: Target, size: LatentSize) -> Resolutions:
    """The resolutions of a run with latents of ``size``.

    Raises:
        ConfigError: a low size is not possible, is not smaller, or is below the minimum.
    """
    full = (size.height, size.width)
    sizes = [low_size(scale, target, size) for scale in config.scales]
    areas = [height * width for height, width in sizes]
    if areas != sorted(set(areas)):
        raise ConfigError(
            f"scale={config.scale} gives latents {sizes}: list them from small to large", path="scale"
        )
    check_minimum(config, target, size, sizes)
    if isinstance(config.low_until, str):
        spectrum = spectrum_for(config, target.pipe, full)[0]
        untils = [critical_time(spectrum, min(low) / 2, config.delta) for low in sizes]
    else:
        untils = list(config.low_until if isinstance(config.low_until, tuple) else (config.low_until,))
    boundary = target.layout.expert_boundary(target.pipe) if config.respect_expert_boundary else None
    return Resolutions(full, tuple(map(LowLevel, sizes, untils)), config.high_first, boundary)


def spectrum_for(
    config: ContinuousConfig, pipe: Pipeline, size: tuple[int, int] | None = None
) -> tuple[Spectrum, str | None]:
    """The spectrum that ``low_until="auto"`` uses, and its source.

    Args:
        config: the options.
        pipe: the pipeline.
        size: height and width of the latents, to which a measured spectrum is scaled.

    Returns:
        The spectrum and a description of its source; the bound :data:`UNKNOWN` and ``None`` if it is unknown.
    """
    if config.spectrum is not None:
        return Spectrum(*config.spectrum), "the option spectrum"
    if (known := known_spectrum(pipe)) is not None:
        return known.spectrum, known.source
    if (learned := _learned(config, pipe)) is None:
        return UNKNOWN, None
    count = f"{learned.pictures} picture{'s' * (learned.pictures > 1)}"
    return learned.at(size or learned.size), f"measured on {count} of an earlier call"


def _learned(config: ContinuousConfig, pipe: Pipeline) -> LearnedSpectrum | None:
    if not config.learn_spectrum or may_differ():
        return None
    autoencoder = autoencoder_of(pipe)
    return None if autoencoder is None else recall(autoencoder)


def low_size(scale: Scale, target: Target, size: LatentSize) -> tuple[int, int]:
    """Latent height and width of a low resolution.

    Raises:
        ConfigError: no legal latent size has this scale.
    """
    layout, full = target.layout, (size.height, size.width)
    if isinstance(scale, tuple):
        return _size_of_pixels(scale, target, size)
    try:
        low = snap_size(full, scale, layout.multiple)
    except ValueError as error:
        raise ConfigError(f"{error}; use a larger picture or a scale nearer to 1", path="scale") from None
    if aspect_deviation(full, low) > ASPECT_TOLERANCE:
        _log.warning(
            "bottleneck: scale %s of latent %s snaps to %s, which changes its aspect", scale, full, low
        )
    return low


def _size_of_pixels(scale: tuple[int, int], target: Target, size: LatentSize) -> tuple[int, int]:
    layout = target.layout
    pixels = layout.pixels(target.pipe, size)
    low = []
    for name, wanted, full_pixels, full in zip(("height", "width"), scale, pixels, (size.height, size.width)):
        step = full_pixels // full * layout.multiple
        if wanted % step:
            raise ConfigError(f"low {name} {wanted} is not a multiple of {step} pixels", path="scale")
        low.append(wanted // step * layout.multiple)
        if low[-1] > full:
            raise ConfigError(
                f"low {name} {wanted} is above the picture's {full_pixels} pixels", path="scale"
            )
    if tuple(low) == (size.height, size.width):
        raise ConfigError(
            f"{scale[0]} x {scale[1]} is the full size already; use a smaller one", path="scale"
        )
    return low[0], low[1]


def minimum_pixels(config: BottleneckConfig, target: Target) -> int:
    """Smallest low resolution in pixels (height x width): the option, or a quarter of the model's native area.

    If half of the native size is not a legal latent size, the nearest legal one counts.
    """
    if config.min_pixels is not None:
        return config.min_pixels
    layout = target.layout
    native = call_size(target, target.call_arguments())
    if native is None:
        return FALLBACK_MIN_PIXELS
    try:
        half = snap_size((native.height, native.width), 0.5, layout.multiple)
    except ValueError:
        return FALLBACK_MIN_PIXELS
    native_height, native_width = layout.pixels(target.pipe, native)
    height, width = layout.pixels(target.pipe, LatentSize(*half, native.frames))
    return min(native_height * native_width // 4, height * width)


def check_minimum(
    config: BottleneckConfig, target: Target, size: LatentSize, sizes: list[tuple[int, int]]
) -> None:
    """Refuse low latent ``sizes`` (height, width) of a run at ``size`` that are below the minimum.

    Raises:
        ConfigError: a size is below it.
    """
    minimum = minimum_pixels(config, target)
    for low in sizes:
        height, width = target.layout.pixels(target.pipe, LatentSize(*low, size.frames))
        if height * width < minimum:
            full = target.layout.pixels(target.pipe, size)
            raise ConfigError(
                f"the low resolution {height} x {width} of a {full[0]} x {full[1]} picture is below min_pixels="
                f"{minimum}: models fail on pictures far smaller than those they were trained on. Use a larger scale "
                f"or picture, or set min_pixels={height * width}",
                path="scale",
            )
