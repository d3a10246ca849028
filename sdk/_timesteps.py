"""The noise levels a pipeline call will visit, from a copy of its scheduler."""

from __future__ import annotations

import copy
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten._errors import UnsupportedError
from hasten._subclass import stock_class
from hasten.pipelines.adapters._base import LatentSize, Prediction
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = ["by_step", "dynamic_shift", "levels_of", "planned_levels"]

_OWN_GRID = re.compile(r"^\s*sigmas = (np\.linspace\(1\.0|get_default\w*sigmas)", re.MULTILINE)


def planned_levels(target: Target, arguments: Mapping[str, Any], size: LatentSize) -> list[NoiseLevel]:
    """Level of every timestep of a pipeline call, in order. A solver of second order may repeat one.

    Args:
        target: the pipeline, which is not touched.
        arguments: of the call, with defaults filled in.
        size: its latent size.

    Raises:
        UnsupportedError: the call has no step count.
    """
    steps = arguments.get("num_inference_steps")
    if not isinstance(steps, int) or steps < 1:
        raise UnsupportedError(
            f"{target.name} takes no num_inference_steps, so its steps cannot be planned ahead"
        )
    scheduler = copy.deepcopy(target.pipe.scheduler)
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    given = {name: arguments[name] for name in ("timesteps", "sigmas") if arguments.get(name) is not None}
    if (
        not given
        and _has_own_grid(target)
        and "sigmas" in accepted
        and not scheduler.config.get("use_flow_sigmas")
    ):
        given = {"sigmas": 1.0 - np.arange(steps) / steps}
    if scheduler.config.get("use_dynamic_shifting", False):
        given["mu"] = dynamic_shift(target, size, steps)
    if not {"timesteps", "sigmas"} & set(given):
        given["num_inference_steps"] = steps
    scheduler.set_timesteps(**given)
    levels = levels_of(target, scheduler)
    return levels[_skipped(target, scheduler, steps, arguments.get("strength")) :]


def by_step(levels: Sequence[NoiseLevel]) -> list[tuple[NoiseLevel, int]]:
    """Steps as a run counts them: each level with the number of timesteps in a row that are at it (two in Heun's)."""
    runs = (list(same) for _, same in groupby(levels, key=lambda level: level.time))
    return [(run[0], len(run)) for run in runs]


def _skipped(target: Target, scheduler: Any, steps: int, strength: Any) -> int:
    """How many of the scheduler's timesteps an image-to-image call leaves out, by the pipeline's own method."""
    method = getattr(stock_class(target.pipe), "get_timesteps", None)
    if strength is None or method is None:
        return 0
    kept, _ = method(SimpleNamespace(scheduler=scheduler), steps, strength, "cpu")
    return len(scheduler.timesteps) - len(kept)


def levels_of(target: Target, scheduler: Any) -> list[NoiseLevel]:
    """Levels of the timesteps a scheduler is set to."""
    count = len(scheduler.timesteps)
    if target.layout.prediction(target.pipe) in (Prediction.VELOCITY, Prediction.NEGATIVE_VELOCITY):
        return [NoiseLevel.flow(float(sigma)) for sigma in scheduler.sigmas[:count]]
    kept = scheduler.alphas_cumprod.double().cpu().numpy()
    angles = np.arctan2(np.sqrt(1.0 - kept), np.sqrt(kept))
    found = np.interp(scheduler.timesteps.cpu().numpy(), np.arange(len(angles)), angles)
    return [NoiseLevel(math.cos(angle), math.sin(angle)) for angle in found]


def dynamic_shift(target: Target, size: LatentSize, steps: int) -> float:
    """The resolution-dependent shift ``mu`` that the pipeline will compute, by its own function.

    Raises:
        UnsupportedError: its scheduler wants one, and the pipeline's module has no known function for it.
    """
    module = sys.modules[stock_class(target.pipe).__module__]
    tokens = (size.frames or 1) * size.height * size.width // target.layout.multiple**2
    if target.adapter.family == "lumina2":  # takes the second axis of unpacked latents for their token count
        tokens = target.pipe.transformer.config.in_channels
    if hasattr(module, "compute_empirical_mu"):
        return float(module.compute_empirical_mu(image_seq_len=tokens, num_steps=steps))
    if hasattr(module, "calculate_shift"):
        config = target.pipe.scheduler.config
        known = (
            ("base_image_seq_len", 256),
            ("max_image_seq_len", 4096),
            ("base_shift", 0.5),
            ("max_shift", 1.15),
        )
        return float(module.calculate_shift(tokens, *(config.get(name, default) for name, default in known)))
    raise UnsupportedError(
        f"{type(target.pipe.scheduler).__name__} has use_dynamic_shifting set, and how {target.name} computes its "
        f"shift is not known"
    )


def _has_own_grid(target: Target) -> bool:
    """Whether the pipeline passes ``1 - j / N`` to its scheduler instead of leaving the grid to it."""
    return _OWN_GRID.search(inspect.getsource(stock_class(target.pipe).__call__)) is not None
