"""The noise levels a pipeline call will visit, from a copy of its scheduler."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten._adapters.base import LatentSize
from hasten._errors import UnsupportedError
from hasten._pipeline import Scheduler
from hasten._subclass import stock_class
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = [
    "by_step",
    "dynamic_shift",
    "levels_of",
    "nothing_to_run",
    "planned_levels",
    "refused_steps",
    "run_levels",
]


def planned_levels(target: Target, arguments: Mapping[str, Any], size: LatentSize) -> list[NoiseLevel]:
    """Level of every timestep that a pipeline call runs, in order. A solver of second order may repeat one.

    Args:
        target: the pipeline, which is not touched.
        arguments: of the call, with defaults filled in.
        size: its latent size.

    Raises:
        UnsupportedError: the call has no step count, or the scheduler refuses it.
    """
    steps = _asked(target, arguments)
    if steps < 1:
        return []
    dynamic = target.pipe.scheduler.config.get("use_dynamic_shifting", False)
    scheduler = _set(target, arguments, dynamic_shift(target, size, steps) if dynamic else None)
    return run_levels(target, arguments, scheduler)


def run_levels(target: Target, arguments: Mapping[str, Any], scheduler: Scheduler) -> list[NoiseLevel]:
    """Level of every timestep that a call runs of those ``scheduler`` is set to.

    Raises:
        UnsupportedError: the scheduler's timesteps tell no levels.
    """
    return levels_of(target, scheduler)[_window(target, arguments, scheduler)]


def nothing_to_run(target: Target, arguments: Mapping[str, Any]) -> str | None:
    """Why a call runs no denoising step at all; ``None`` if it runs one, or if its steps cannot be planned ahead."""
    return _steps_problem(target, arguments)[0]


def refused_steps(target: Target, arguments: Mapping[str, Any]) -> str | None:
    """Why the scheduler refuses the steps of a call, ``None`` if it does not."""
    return _steps_problem(target, arguments)[1]


def _steps_problem(target: Target, arguments: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Why no step is left, and why the scheduler refuses them."""
    steps, scheduler = arguments.get("num_inference_steps"), getattr(target.pipe, "scheduler", None)
    if not isinstance(steps, int) or scheduler is None:
        return None, None
    names = ["num_inference_steps"]
    if steps >= 1:
        try:  # how many steps there are does not depend on the shift
            scheduler = _set(target, arguments, 1.0 if scheduler.config.get("use_dynamic_shifting") else None)
            left = range(len(scheduler.timesteps))[_window(target, arguments, scheduler)]
        except UnsupportedError as error:
            return None, str(error)
        if left:
            return None, None
        names += ["strength", "denoising_start", "denoising_end"]
    told = ", ".join(f"{name}={arguments[name]}" for name in names if arguments.get(name) is not None)
    return f"no steps are left to run at {told}", None


def _asked(target: Target, arguments: Mapping[str, Any]) -> int:
    steps = arguments.get("num_inference_steps")
    if not isinstance(steps, int):
        raise UnsupportedError(
            f"{target.name} has no argument num_inference_steps, so its steps cannot be planned"
        )
    return steps


def _set(target: Target, arguments: Mapping[str, Any], mu: float | None) -> Any:
    """A copy of the pipeline's scheduler, set to the timesteps of a call."""
    scheduler = copy.deepcopy(target.pipe.scheduler)
    try:
        given = _given(target, arguments, scheduler)
        scheduler.set_timesteps(**given, **({} if mu is None else {"mu": mu}))
    except Exception as error:  # a scheduler's own words for what it does not do
        raise UnsupportedError(
            f"{type(scheduler).__name__} refuses the steps of this call: {error}"
        ) from error
    return scheduler


def _given(target: Target, arguments: Mapping[str, Any], scheduler: Scheduler) -> dict[str, Any]:
    """What the pipeline passes to ``set_timesteps``, its dynamic shift left out."""
    steps = arguments["num_inference_steps"]
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    given = _custom(arguments)
    if not given and "sigmas" in accepted and not scheduler.config.get("use_flow_sigmas"):
        sigmas = target.layout.sigmas(target.pipe, steps)
        if sigmas is not None:
            return {"sigmas": np.array(sigmas)}
    return given or {"num_inference_steps": steps}


def _custom(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The timesteps or sigmas of the caller's own."""
    return {name: arguments[name] for name in ("timesteps", "sigmas") if arguments.get(name) is not None}


def by_step(levels: Sequence[NoiseLevel]) -> list[tuple[NoiseLevel, int]]:
    """Steps as a run counts them: each level with the number of timesteps in a row that are at it (two in Heun's).

    Examples:
        >>> [(level.time, forwards) for level, forwards in by_step([NoiseLevel.flow(t) for t in (1.0, 0.5, 0.5)])]
        [(1.0, 1), (0.5, 2)]
    """
    runs = (list(same) for _, same in groupby(levels, key=lambda level: level.time))
    return [(run[0], len(run)) for run in runs]


def _window(target: Target, arguments: Mapping[str, Any], scheduler: Scheduler) -> slice:
    """Which of the scheduler's timesteps a call runs: not all with ``strength``, ``denoising_start`` or ``_end``."""
    times = scheduler.timesteps
    first = _skipped(target, arguments, scheduler)
    end = arguments.get("denoising_end")
    if not _is_share(end):
        return slice(first, None)
    trained = scheduler.config.num_train_timesteps
    cutoff = round(trained - end * trained)
    return slice(first, first + sum(float(time) >= cutoff for time in times[first:]))


def _skipped(target: Target, arguments: Mapping[str, Any], scheduler: Scheduler) -> int:
    """How many of the scheduler's timesteps an image-to-image call leaves out, by the pipeline's own method."""
    method = getattr(stock_class(target.pipe), "get_timesteps", None)
    if method is None:
        return 0
    start, times = arguments.get("denoising_start"), scheduler.timesteps
    known = {
        "num_inference_steps": len(times) if _custom(arguments) else arguments.get("num_inference_steps"),
        "timesteps": times,
        "strength": arguments.get("strength"),
        "device": "cpu",
        "denoising_start": start if _is_share(start) else None,
    }
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if any(known.get(p.name) is None and p.default is p.empty for p in parameters):
        return 0
    given = {p.name: known[p.name] for p in parameters if p.name in known}
    try:
        kept = method(SimpleNamespace(scheduler=copy.deepcopy(scheduler)), **given)[0]
    except Exception as error:  # arguments that the pipeline will refuse in its own words
        raise UnsupportedError(f"{target.name}.get_timesteps refuses this call: {error}") from error
    return len(times) - len(kept)


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0.0 < value < 1.0


def levels_of(target: Target, scheduler: Scheduler) -> list[NoiseLevel]:
    """Levels of the timesteps a scheduler is set to, as the run clock will tell them.

    Raises:
        UnsupportedError: they tell none.
    """
    times = scheduler.timesteps
    known = target.layout.planned_levels(target.pipe, scheduler)
    if known is not None:
        return known
    if target.layout.flows(target.pipe):
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is None:
            sigmas = times / scheduler.config.num_train_timesteps
        return [NoiseLevel.flow(float(sigma)) for sigma in sigmas[: len(times)]]
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UnsupportedError(f"{type(scheduler).__name__} has no table of noise levels (alphas_cumprod)")
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
    tokens = target.layout.shift_tokens(target.pipe, size)
    if hasattr(module, "compute_empirical_mu"):
        return float(module.compute_empirical_mu(image_seq_len=tokens, num_steps=steps))
    common = getattr(module, "calculate_shift", None)
    if common is not None and len(inspect.signature(common).parameters) == 5:  # others mean something else
        config = target.pipe.scheduler.config
        known = (
            ("base_image_seq_len", 256),
            ("max_image_seq_len", 4096),
            ("base_shift", 0.5),
            ("max_shift", 1.15),
        )
        return float(common(tokens, *(config.get(name, default) for name, default in known)))
    raise UnsupportedError(
        f"{type(target.pipe.scheduler).__name__} has use_dynamic_shifting set, and it is not known how "
        f"{target.name} computes its shift"
    )
