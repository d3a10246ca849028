"""When a run may use a smaller latent, how small, and which noise level the small one is at.

Notation: a state is ``alpha x0 + sigma eps``; ``t`` is the flow time (``alpha = 1 - t, sigma = t``); ``r`` is the
amplitude ratio ``sqrt(H W / (h w))`` between a full ``H x W`` and a low ``h x w`` latent. Truncating a state's
cosine coefficients (:mod:`hasten.schedules.dct`) multiplies its signal by ``r`` and leaves its noise, so it divides
``sigma / alpha`` by ``r``, exactly as a timestep shift by ``1 / r`` does.

Sources: Bottleneck Sampling, arXiv 2503.18940, tables 4 and 5 (stages); SPEED, arXiv 2605.18736 (critical time);
Stable Diffusion 3, arXiv 2403.03206, section 5.3.2 (shift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal

from hasten.schedules.noise import NoiseLevel
from hasten.schedules.spectrum import Spectrum

__all__ = [
    "Path",
    "amplitude_ratio",
    "aspect_deviation",
    "critical_time",
    "lower_time",
    "raise_time",
    "shift_level",
    "shift_time",
    "snap_size",
    "stage_times",
]

Path = Literal["flow", "vp"]
"""Which pairs ``(alpha, sigma)`` a model knows: ``alpha + sigma = 1``, or ``alpha**2 + sigma**2 = 1``."""

ASPECT_TOLERANCE = 0.02
"""Relative change of the aspect ratio that snapping to multiples may cause without being avoided or reported."""


def amplitude_ratio(full: tuple[int, int], low: tuple[int, int]) -> float:
    """``r = sqrt(H W / (h w))`` of two (height, width): 2 for halving both sides."""
    return math.sqrt(full[0] * full[1] / (low[0] * low[1]))


def shift_time(time: float, shift: float) -> float:
    """Rational timestep shift ``s u / (1 + (s - 1) u)``: multiplies ``sigma / alpha`` by ``s``.

    Args:
        time: flow time in [0, 1].
        shift: positive; above 1 moves towards noise.
    """
    return shift * time / (1.0 + (shift - 1.0) * time)


def lower_time(time: float, ratio: float) -> float:
    """Flow time of a state after truncation by amplitude ratio ``r``: ``t / (r - (r - 1) t)``, at most ``t``."""
    return shift_time(time, 1.0 / ratio)


def raise_time(time: float, ratio: float) -> float:
    """Flow time of a state after enlarging by amplitude ratio ``r``: ``r t / (1 + (r - 1) t)``, at least ``t``."""
    return shift_time(time, ratio)


def shift_level(level: NoiseLevel, shift: float, path: Path) -> NoiseLevel:
    """The level on the model's path whose ``sigma / alpha`` is ``shift`` times that of ``level``.

    Args:
        level: a level on ``path``.
        shift: positive; ``1 / r`` when truncating, ``r`` when enlarging.
        path: which pairs of coefficients the model was trained on.
    """
    sigma = shift * level.sigma
    norm = level.alpha + sigma if path == "flow" else math.hypot(level.alpha, sigma)
    return NoiseLevel(level.alpha / norm, sigma / norm)


def critical_time(spectrum: Spectrum, edge: float, delta: float) -> float:
    """Flow time ``t*`` below which frequencies past ``edge`` can no longer be left out.

    ``t* = 1 / (1 + sqrt(delta / (P (1 + P - delta))))`` with ``P`` the latents' power at the edge: down to there,
    replacing what the low grid cannot hold by its expectation costs a relative error of at most ``delta``.

    Args:
        spectrum: power of the model's latents.
        edge: highest frequency of the low grid in cycles per image, ``min(h, w) / 2``.
        delta: tolerated relative error, in (0, 1).
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    power = spectrum.power(edge)
    return 1.0 / (1.0 + math.sqrt(delta / (power * (1.0 + power - delta))))


def stage_times(steps: int, strength: float, shift: float) -> tuple[float, ...]:
    """Noise levels of one restart stage, descending, with the final 0.

    >>> stage_times(4, 0.5, 1.0)
    (0.5, 0.25, 0.0)

    The grid ``1 - j / N`` is shifted and its start cut as diffusers' image-to-image pipelines do: ``ceil(N w)`` of
    the ``N`` steps run.

    Args:
        steps: ``N`` before the cut, at least 1.
        strength: ``w``, share of the steps that run, in (0, 1].
        shift: ``s``, positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    if shift <= 0.0:
        raise ValueError(f"shift must be positive, got {shift}")
    cut = int(steps - min(steps * strength, steps))
    return (*(shift_time(1.0 - j / steps, shift) for j in range(cut, steps)), 0.0)


def snap_size(full: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    """A legal latent size near ``scale`` times ``full``, keeping the aspect ratio.

    >>> snap_size((128, 128), 0.5, 2)
    (64, 64)

    Among the neighbouring multiples of each side, those that keep the aspect within 2 % come first, and of these the
    one of nearest area.

    Args:
        full: height and width in latent pixels.
        scale: in (0, 1).
        multiple: what height and width must be divisible by.

    Raises:
        ValueError: if no smaller size exists (a side would vanish, or every candidate is the full size).
    """
    if not 0.0 < scale < 1.0:
        raise ValueError(f"scale must be in (0, 1), got {scale}")
    sides = [_neighbours(side, scale, multiple) for side in full]
    candidates = [size for size in product(*sides) if size != tuple(full)]
    if not candidates:
        raise ValueError(
            f"a latent of {full[0]} x {full[1]} cannot be scaled by {scale}: sides must be multiples of {multiple}"
            f" and there is none below"
        )
    target = scale * math.sqrt(full[0] * full[1])

    def cost(size: Sequence[int]) -> tuple[float, float]:
        excess = max(0.0, aspect_deviation(full, (size[0], size[1])) - ASPECT_TOLERANCE)
        return excess, abs(math.log(math.sqrt(size[0] * size[1]) / target))

    height, width = min(candidates, key=cost)
    return height, width


def _neighbours(side: int, scale: float, multiple: int) -> list[int]:
    below = math.floor(round(side * scale / multiple, 9)) * multiple
    above = math.ceil(round(side * scale / multiple, 9)) * multiple
    return sorted({size for size in (below, above) if multiple <= size <= side})


def aspect_deviation(full: tuple[int, int], low: tuple[int, int]) -> float:
    """How far the aspect ratios of two (height, width) are apart, as ``|log|`` (0.02 is two per cent)."""
    return abs(math.log(full[0] * low[1] / (full[1] * low[0])))
