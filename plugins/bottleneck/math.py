"""One denoiser forward at a lower resolution, in the notation of the README.

The pipeline asks for the model's prediction at ``x = alpha x0 + sigma eps``. The model runs on the small state
``y = c D x`` instead, where ``D`` truncates the cosine transform, at the level with the same signal-to-noise ratio.
Its estimate of the clean picture is enlarged to ``X0 = r D^T x0`` and converted to the prediction that corresponds to
this estimate at ``x``. ``D`` is linear, so guidance and linear solvers act on the low frequencies exactly as on the
small grid. Above them the estimate is zero, and the noise falls with the level.

Tensors are (..., H, W), float32 or float64; callers convert to other types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hasten.extend import Prediction
from hasten.schedules.dct import dct_expand, dct_truncate
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.resolution import Path, amplitude_ratio, shift_level

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["clean_estimate", "expand_prediction", "low_state", "path_of", "prediction_at", "runs_low"]


def path_of(prediction: Prediction) -> Path:
    """Noise path that a model with this prediction was trained on."""
    flow = prediction in (Prediction.VELOCITY, Prediction.NEGATIVE_VELOCITY)
    return "flow" if flow else "vp"


def runs_low(prediction: Prediction, level: NoiseLevel) -> bool:
    """Whether the formulas are defined at ``level``: they divide by sigma, and for noise prediction by alpha."""
    return level.sigma > 0.0 and (level.alpha > 0.0 or prediction is not Prediction.EPSILON)


def low_state(x: Tensor, level: NoiseLevel, low: tuple[int, int], path: Path) -> tuple[Tensor, NoiseLevel]:
    """``(c D x, (alpha', sigma'))``: the state on the small grid and its level.

    Args:
        x: state (..., H, W) at ``level``.
        level: ``(alpha, sigma)`` with ``sigma > 0``.
        low: height and width of the small grid.
        path: noise path of the model, on which the new level lies: ``sigma' / alpha' = sigma / (alpha r)``.

    Returns:
        The state (..., h, w), and its level.
    """
    r = amplitude_ratio((x.shape[-2], x.shape[-1]), low)
    low_level = shift_level(level, 1.0 / r, path)
    c = low_level.sigma / level.sigma
    return c * dct_truncate(x, *low), low_level


def clean_estimate(prediction: Prediction, x: Tensor, output: Tensor, level: NoiseLevel) -> Tensor:
    """Estimate ``x0`` (..., H, W) from a model's ``output`` at the state ``x = alpha x0 + sigma eps``."""
    alpha, sigma = level.alpha, level.sigma
    match prediction:
        case Prediction.VELOCITY:
            return x - sigma * output
        case Prediction.NEGATIVE_VELOCITY:
            return x + sigma * output
        case Prediction.EPSILON:
            return (x - sigma * output) / alpha
        case Prediction.VP_VELOCITY:
            return alpha * x - sigma * output


def prediction_at(prediction: Prediction, x: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """Prediction that corresponds to the estimate ``x0`` at the state ``x``; inverse of :func:`clean_estimate`."""
    alpha, sigma = level.alpha, level.sigma
    match prediction:
        case Prediction.VELOCITY:
            return (x - x0) / sigma
        case Prediction.NEGATIVE_VELOCITY:
            return (x0 - x) / sigma
        case Prediction.EPSILON:
            return (x - alpha * x0) / sigma
        case Prediction.VP_VELOCITY:
            return (alpha * x - x0) / sigma


def expand_prediction(
    prediction: Prediction,
    x: Tensor,
    level: NoiseLevel,
    y: Tensor,
    low_level: NoiseLevel,
    output: Tensor,
    taper: int = 0,
) -> Tensor:
    """The full-size prediction that corresponds to a forward on the small state.

    Args:
        prediction: what the model predicts.
        x: full state (B, C, ..., H, W) at ``level``.
        level: level of ``x``.
        y: small state (B, C, ..., h, w) that the model was run on.
        low_level: level of ``y``.
        output: of the model for ``y``. Channels beyond those of ``y`` (a learned variance) are only enlarged.
        taper: number of cosine coefficients per axis that fade out at the edge of the band.

    Returns:
        (B, C or more, ..., H, W).
    """
    full = (x.shape[-2], x.shape[-1])
    channels = y.shape[1]
    x0 = clean_estimate(prediction, y, output[:, :channels], low_level)
    expanded = amplitude_ratio(full, (y.shape[-2], y.shape[-1])) * dct_expand(
        torch.cat([x0, output[:, channels:]], dim=1), *full, taper
    )
    main = prediction_at(prediction, x, expanded[:, :channels], level)
    return torch.cat([main, expanded[:, channels:]], dim=1)
