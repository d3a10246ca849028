"""What the technique ``cache`` does with a pipeline: which layers it can answer for, and its handlers."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hasten.extend import (
    BlockOutputs,
    CacheDefaults,
    DenoiserCall,
    Guidance,
    ImageLayout,
    LatentLayout,
    Seams,
    Target,
    UnsupportedError,
    attention_layers,
    branches,
    parameter_names,
    planned_steps,
    refuse_compiled,
    unwrapped,
)
from hasten.plugins.cache.blocks import feed_forward_layers, refusal
from hasten.plugins.cache.config import CacheConfig, Situation
from hasten.plugins.cache.hooked import Hooked

__all__ = ["CachedForwards", "call_steps"]

Proceed = Callable[[DenoiserCall], object]
_active: ContextVar[Hooked] = ContextVar("hasten_cache")
"""The cache of the denoiser forward that is under way in this context."""
_MANY_STEPS = 50
"""Where a call does not tell how many it has."""


def call_steps(target: Target, arguments: Any) -> int:
    """Denoising steps of a call."""
    planned = planned_steps(target, arguments)
    return len(planned[1]) if planned is not None else _MANY_STEPS


class CachedForwards:
    """A cache on every denoiser of a pipeline.

    Args:
        owner: name of the technique.
        config: which cache.
        target: the pipeline.
    """

    def __init__(self, owner: str, config: CacheConfig, target: Target) -> None:
        self._owner, self._target = owner, target
        self._config = config.for_family(target.adapter.capability(CacheDefaults))
        self._outputs = target.adapter.capability(BlockOutputs)

    def obstacle(self) -> str | None:
        """Why the cache cannot work on the pipeline, ``None`` if it can."""
        for name, denoiser in self._target.denoisers.items():
            model, situation = unwrapped(denoiser), self._situation(name, 2, _MANY_STEPS)
            reason = refusal(model, self._outputs) if self._config.blocks else None
            reason = reason or self._config.refusal(situation)
            if reason is None:
                try:
                    Hooked(model, self._config, situation, self._outputs)
                except UnsupportedError as error:
                    reason = str(error)
            if reason is not None:
                return f"kind={self._config.kind!r} on {name}: {reason}; choose another kind"
        return None

    def refusal_of_call(self, arguments: Any) -> str | None:
        """Why the cache cannot work in a call, ``None`` if it can."""
        samples, steps = branches(self._target, arguments), call_steps(self._target, arguments)
        name = next(iter(self._target.denoisers))
        reason = self._config.refusal(self._situation(name, samples, steps))
        return None if reason is None else f"kind={self._config.kind!r}: {reason}"

    def attach(self, seams: Seams) -> None:
        """A handler around every denoiser forward, and one around every layer that the cache may answer for."""
        seams.denoiser(self._forward)
        for denoiser, model in self._target.denoisers.items():
            hooked = Hooked(
                unwrapped(model), self._config, self._situation(denoiser, 2, _MANY_STEPS), self._outputs
            )
            for name in hooked.layers:
                seams.module(f"{denoiser}.{name}", partial(_layer, name))

    def _forward(self, call: DenoiserCall, proceed: Proceed) -> object:
        kept = call.run.state(self._owner)  # emptied when the level rises, dropped when the run ends
        if call.denoiser not in kept:
            kept[call.denoiser] = self._hooked(call)
        hooked: Hooked = kept[call.denoiser]
        token = _active.set(hooked)
        try:
            output = hooked.forward(
                call.step.branch,
                call.step.noise.time,
                lambda **arguments: proceed(call.replace_kwargs(arguments)),
                dict(call.kwargs),
            )
        finally:
            _active.reset(token)
        call.run.record(self._owner, computed=hooked.computed, layers=len(hooked.layers))
        return output

    def _hooked(self, call: DenoiserCall) -> Hooked:
        refuse_compiled(self._target)  # it may have been compiled since the technique was attached
        samples = 2 if call.step.branch == "both" else 1
        situation = self._situation(call.denoiser, samples, call_steps(self._target, call.run.arguments))
        batch = len(next(iter(call.kwargs.values())))
        batched = (name for name, value in call.kwargs.items() if _rows(value) == batch)
        situation = replace(situation, batched=tuple(batched))
        reason = self._config.refusal(situation)
        if reason is not None:
            raise UnsupportedError(f"cache: kind={self._config.kind!r}: {reason}; choose another kind")
        return Hooked(unwrapped(call.module), self._config, situation, self._outputs)

    def _situation(self, denoiser: str, samples: int, steps: int) -> Situation:
        layout, model = self._target.layout, unwrapped(self._target.denoisers[denoiser])
        prefix = f"{denoiser}."
        attention = (n.removeprefix(prefix) for n in attention_layers(self._target) if n.startswith(prefix))
        return Situation(
            steps=steps,
            doubled=layout.guidance is Guidance.BATCHED and samples == 2,
            latents=_axes(layout),
            nested="added_cond_kwargs" in parameter_names(model),
            timestep=lambda: 0,
            layers=(*attention, *feed_forward_layers(model)),
        )


def _layer(name: str, inner: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    return _active.get().layer(name, inner, args, kwargs)


def _rows(value: object) -> int | None:
    return len(value) if isinstance(value, torch.Tensor) and value.ndim > 0 else None


def _axes(layout: LatentLayout) -> str | None:
    """Order of the latents' axes as diffusers names them, ``None`` where they are packed into tokens."""
    if not isinstance(layout, ImageLayout):
        return None
    batch, channels, frames, height, width = 1, 2, 3, 4, 6
    extent = (height, width) if layout.ndim == 4 else (frames, height, width)
    arranged = layout.arrange(torch.empty(batch, channels, *extent))
    known = {(1, 2, 4, 6): "BCHW", (1, 2, 3, 4, 6): "BCFHW", (1, 3, 2, 4, 6): "BFCHW"}
    return known.get(tuple(arranged.shape)) if isinstance(arranged, torch.Tensor) else None
