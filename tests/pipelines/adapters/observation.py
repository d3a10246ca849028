"""Observe a run: what the denoisers were asked, and what the scheduler made of their answers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from families import FAMILIES, seeded
from torch import Tensor, nn

from hasten.extend import Adapter, LatentLayout
from hasten.pipelines.adapters import find
from hasten.schedules.noise import NoiseLevel


@dataclass(frozen=True)
class Forward:
    """One denoiser forward and its arguments by name."""

    module: nn.Module
    kwargs: dict[str, Any]
    sample: Any
    step: int


@dataclass
class Observation:
    """A pipeline, and what happened in one call of it."""

    pipe: Any
    arguments: dict[str, Any]
    forwards: list[Forward] = field(default_factory=list)
    levels: list[NoiseLevel] = field(default_factory=list)
    """The scheduler's own level, step by step."""
    states: list[Tensor] = field(default_factory=list)
    """The solver's latents after each step, packed as the family does."""

    @property
    def adapter(self) -> Adapter:
        return find(self.pipe)

    @property
    def layout(self) -> LatentLayout:
        layout = self.adapter.capability(LatentLayout)
        assert layout is not None
        return layout

    @property
    def denoisers(self) -> list[nn.Module]:
        present = (getattr(self.pipe, name, None) for name in self.adapter.denoisers)
        return [module for module in present if module is not None]


Answer = Callable[[Observation, dict[str, Any]], Any]


def observe(name: str, answer: Answer | None = None, **changes: Any) -> Observation:
    """Observe the cheap call of family ``name``."""
    return observe_call(FAMILIES[name](), {**seeded(name), **changes}, answer)


def observe_call(pipe: Any, given: dict[str, Any], answer: Answer | None = None) -> Observation:
    """Run a call, with ``answer(observation, kwargs)`` in place of the denoisers if it is given."""
    bound = inspect.signature(type(pipe).__call__).bind(pipe, **given)
    bound.apply_defaults()
    seen = Observation(pipe, {key: value for key, value in bound.arguments.items() if key != "self"})
    for module in seen.denoisers:
        _watch(module, seen, answer)
    _watch_scheduler(pipe.scheduler, seen)
    with torch.no_grad():
        pipe(**given)
    for module in seen.denoisers:
        del module.forward
    return seen


def _watch(module: nn.Module, seen: Observation, answer: Answer | None) -> None:
    inner, signature = module.forward, inspect.signature(module.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        if answer is None:
            output = inner(*args, **kwargs)
        else:
            # LTX-2 returns audio too, which is none of the layout's business.
            output = (answer(seen, bound), bound.get("audio_hidden_states"))
            if bound.get("return_dict") is None and type(seen.pipe).__name__ == "AnimateDiffPipeline":
                seen.forwards.append(Forward(module, dict(bound), output[0], len(seen.levels)))
                return SimpleNamespace(sample=output[0])  # the one pipeline that asks for an object
        seen.forwards.append(Forward(module, dict(bound), output[0], len(seen.levels)))
        return output

    module.forward = forward  # type: ignore[method-assign]


def _watch_scheduler(scheduler: Any, seen: Observation) -> None:
    kind = type(scheduler)
    flow = scheduler.config.get("use_flow_sigmas", not hasattr(scheduler, "alphas_cumprod"))

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = kind.step(self, *args, **kwargs)
        if self is not scheduler:  # LTX-2 copies the scheduler for its audio
            return result
        if flow:
            seen.levels.append(NoiseLevel.flow(float(self.sigmas[self.step_index - 1])))
        else:
            # CogVideoX's DPM scheduler takes the previous prediction in front of the timestep.
            timestep = args[2] if len(args) > 4 else args[1]
            seen.levels.append(NoiseLevel.vp(float(self.alphas_cumprod[int(timestep)])))
        seen.states.append(result[0])
        return result

    scheduler.__class__ = type(kind.__name__, (kind,), {"step": step})
