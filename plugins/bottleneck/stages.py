"""The stages of ``mode="restart"``: the tables of the paper, latent sizes, and a scheduler for each stage."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.extend import ConfigError, LatentSize, UnsupportedError
from hasten.plugins.bottleneck.config import RestartConfig, Stage
from hasten.plugins.bottleneck.levels import check_minimum, low_size
from hasten.schedules.resolution import amplitude_ratio

if TYPE_CHECKING:
    import torch

    from hasten.extend import Target

__all__ = ["PRESETS", "PlannedStage", "is_flow", "plan_stages", "preset_for", "stage_scheduler"]

PRESETS: dict[str, tuple[Stage, ...]] = {
    "flux": (
        Stage(steps=6, scale=1, strength=1.0, shift=9.0),
        Stage(steps=20, scale=0.5, strength=0.8, shift=6.0),
        Stage(steps=8, scale=1, strength=0.6, shift=9.0),
    ),
    "hunyuan-video": (
        Stage(steps=4, scale=1, strength=1.0, shift=7.0),
        Stage(steps=24, scale=0.75, strength=0.8, shift=9.0),
        Stage(steps=16, scale=1, strength=0.7, shift=9.0),
    ),
}
"""Tables 4 and 5 of arXiv 2503.18940, for FLUX.1-dev and HunyuanVideo. The paper has no others."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its latent size (height, width) and its amplitude ratio to full resolution."""

    size: tuple[int, int]
    ratio: float
    stage: Stage


def preset_for(target: Target) -> tuple[Stage, ...] | None:
    """The stages of the paper for the pipeline's model; ``None`` if it has none."""
    # A model without guidance embedding, such as FLUX.1-schnell, runs too few steps to divide them into stages.
    config = getattr(next(iter(target.denoisers.values())), "config", {})
    return PRESETS.get(target.adapter.family) if config.get("guidance_embeds", False) else None


def plan_stages(config: RestartConfig, target: Target, size: LatentSize) -> tuple[PlannedStage, ...]:
    """The stages of a run with latents of ``size``.

    Raises:
        ConfigError: there are no stages for this model, or a stage's size is not possible.
    """
    stages = config.stages or (PRESETS[config.preset] if config.preset else preset_for(target))
    if stages is None:
        raise ConfigError(
            f"mode='restart' has published stages for FLUX.1-dev and HunyuanVideo, not for this {target.name}; "
            f"give stages, or a preset to start from ({', '.join(PRESETS)})",
            path="stages",
        )
    full = (size.height, size.width)
    sizes = [full if stage.scale == 1 else low_size(stage.scale, target, size) for stage in stages]
    check_minimum(config, target, size, [low for low in sizes if low != full])
    return tuple(PlannedStage(s, amplitude_ratio(full, s), stage) for s, stage in zip(sizes, stages))


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler's states are ``(1 - t) x0 + t noise``."""
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas", False))
        or config.get("prediction_type") == "flow_prediction"
    )


def stage_scheduler(
    base: Any, planned: PlannedStage, device: torch.device | str | None, mu: float | None
) -> tuple[Any, int]:
    """A scheduler for one stage, with the stage's timesteps.

    Args:
        base: the pipeline's scheduler; it is not changed.
        planned: the stage.
        device: device of the timesteps.
        mu: dynamic shift that the pipeline computed for full resolution; ``None`` without one.

    Returns:
        The scheduler, and the index of its first timestep that runs.

    Raises:
        ConfigError: the scheduler does not support the stage's shift.
        UnsupportedError: the scheduler has no adjustable shift.
    """
    scheduler = copy.deepcopy(base)
    if is_flow(scheduler):
        _set_flow_timesteps(scheduler, planned, device, mu)
    else:
        _set_diffusion_timesteps(scheduler, planned, device)
    first = planned.stage.first * getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler, first


def _set_flow_timesteps(
    scheduler: Any, planned: PlannedStage, device: torch.device | str | None, mu: float | None
) -> None:
    """Set the grid ``1 - j / N`` explicitly: default grids end above 0 and already include a shift."""
    steps = planned.stage.steps
    parameters = inspect.signature(scheduler.set_timesteps).parameters
    given: dict[str, Any] = {"device": device}
    if "sigmas" in parameters:
        given["sigmas"] = 1.0 - np.arange(steps) / steps
    else:
        given["num_inference_steps"] = steps
    if scheduler.config.get("use_dynamic_shifting", False):
        given["mu"] = _dynamic_shift(scheduler, planned, mu)
    else:
        _set_static_shift(scheduler, planned)
    scheduler.set_timesteps(**given)


def _dynamic_shift(scheduler: Any, planned: PlannedStage, mu: float | None) -> float:
    exponential = scheduler.config.get("time_shift_type", "exponential") == "exponential"
    shift = planned.stage.shift
    if shift is None:
        if mu is None:
            raise ConfigError("this pipeline has no dynamic shift: give every stage a shift", path="stages")
        shift = (math.exp(mu) if exponential else mu) / planned.ratio
    return math.log(shift) if exponential else shift


def _set_static_shift(scheduler: Any, planned: PlannedStage) -> None:
    in_config = "flow_shift" in scheduler.config
    own = scheduler.config.flow_shift if in_config else scheduler.shift
    shift = planned.stage.shift if planned.stage.shift is not None else own / planned.ratio
    if in_config:
        scheduler.register_to_config(flow_shift=shift)
    elif hasattr(scheduler, "set_shift"):
        scheduler.set_shift(shift)
    elif shift != own:
        raise UnsupportedError(f"{type(scheduler).__name__} has no adjustable shift; restart mode needs one")


def _set_diffusion_timesteps(
    scheduler: Any, planned: PlannedStage, device: torch.device | str | None
) -> None:
    """Set the default timesteps, or with a shift those whose noise ratio is ``shift`` times as large."""
    stage = planned.stage
    scheduler.set_timesteps(stage.steps, device=device)
    if stage.shift is None or stage.shift == 1.0:
        return
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ConfigError(
            f"{type(scheduler).__name__} derives each timestep from the previous one and cannot be shifted: "
            f"leave the shift of every stage unset, or use a scheduler with custom timesteps "
            f"(DPMSolverMultistepScheduler)",
            path="stages",
        )
    kept = scheduler.alphas_cumprod.double().cpu().numpy()
    ratio = np.sqrt((1.0 - kept) / kept)
    wanted = stage.shift * np.interp(scheduler.timesteps.cpu().numpy(), np.arange(len(ratio)), ratio)
    found = np.interp(wanted, ratio, np.arange(len(ratio))).round().astype(np.int64)
    if (np.diff(found) >= 0).any():
        raise ConfigError(
            f"shift={stage.shift} moves several of the {stage.steps} steps to the same timestep: use a smaller shift",
            path="stages",
        )
    scheduler.set_timesteps(timesteps=found.tolist(), device=device)
