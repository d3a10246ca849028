"""The technique ``cache``: claims, checks, one handler."""

# ruff: noqa: ARG002 (the host passes arguments that a technique may not need)
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hasten.extend import (
    Access,
    BlockOutputs,
    Claim,
    DenoiserCall,
    Finding,
    Guidance,
    ImageLayout,
    LatentLayout,
    Seams,
    StepRecord,
    Target,
    Technique,
    UnsupportedError,
    attention_layers,
    branches,
    hookimpl,
    parameter_names,
    planned_steps,
    refuse_compiled,
    unwrapped,
)
from hasten.plugins.cache.blocks import feed_forward_layers, refusal
from hasten.plugins.cache.config import CacheConfig, Situation
from hasten.plugins.cache.hooked import Hooked

__all__ = ["Cache"]

Proceed = Callable[[DenoiserCall], object]
_active: ContextVar[Hooked] = ContextVar("hasten_cache")
"""The cache of the denoiser forward that is under way in this context."""
_FEWEST_STEPS = 6
_MANY_STEPS = 50
"""Where a call does not tell how many it has."""


class Cache(Technique[CacheConfig]):
    """Reuses or extrapolates what layers computed at earlier steps, by the caches that come with diffusers."""

    name = "cache"
    summary = "reuses what layers computed at earlier steps, by the caches of diffusers"
    config_class = CacheConfig
    requires = (LatentLayout,)
    sameness = "close"

    def claims(self, target: Target) -> list[Claim]:
        """Layers that are skipped compute no attention. Memory is dropped when the number of tokens changes.

        FasterCache decides over the batch before the layers tell their size, so it cannot follow.
        """
        claims = [
            Claim("attention.self", Access.EXCLUSIVE),
            Claim("tokens.shape", Access.READS, follows_writes=self.config.kind != "faster"),
            Claim("weights.structure", Access.READS),
        ]
        if self.config.kind == "faster":
            claims.append(Claim("batch.branches", Access.EXCLUSIVE))
        return claims

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse compiled denoisers, hooks that are there already, and layers that diffusers does not know."""
        try:
            refuse_compiled(target)
        except UnsupportedError as error:
            return [Finding("error", str(error))]
        for name, model in target.denoisers.items():
            reason = self._obstacle(target, name, model)
            if reason is not None:
                return [
                    Finding("error", f"kind={self.config.kind!r} on {name}: {reason}; choose another kind")
                ]
        return []

    def _obstacle(self, target: Target, name: str, model: nn.Module) -> str | None:
        outputs, situation = (
            target.adapter.capability(BlockOutputs),
            self._situation(target, name, 2, _MANY_STEPS),
        )
        reason = self.config.refusal(situation)
        if reason is None and self.config.blocks:
            reason = refusal(model, outputs)
        if reason is not None:
            return reason
        try:
            Hooked(model, self.config, situation, outputs)
        except UnsupportedError as error:
            return str(error)
        return None

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:
        """Refuse calls that the kind cannot work in; say that a call has too few steps to reuse anything."""
        name = next(iter(target.denoisers))
        planned = planned_steps(target, arguments)
        steps = len(planned[1]) if planned is not None else _MANY_STEPS
        reason = self.config.refusal(self._situation(target, name, branches(target, arguments), steps))
        if reason is not None:
            yield Finding("error", f"kind={self.config.kind!r}: {reason}")
        if steps < _FEWEST_STEPS:
            yield Finding("warning", f"{steps} steps are too far apart for a cache to reuse much of them")

    def attach(self, target: Target, seams: Seams) -> None:
        """A handler around every denoiser forward, and one around every layer that the cache may answer for."""
        seams.denoiser(lambda call, proceed: self._forward(target, call, proceed))
        for denoiser, model in target.denoisers.items():
            situation = self._situation(target, denoiser, 2, _MANY_STEPS)
            for name in Hooked(model, self.config, situation, target.adapter.capability(BlockOutputs)).layers:
                seams.module(f"{denoiser}.{name}", partial(_layer, name))

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:
        """Say that nothing was reused."""
        facts = [step.facts[self.name] for step in steps if self.name in step.facts]
        if all(fact["computed"] == fact["layers"] for fact in facts):
            yield "no layer's output was reused"

    def _forward(self, target: Target, call: DenoiserCall, proceed: Proceed) -> object:
        kept = call.run.state(self.name)  # emptied when the level rises, dropped when the run ends
        if call.denoiser not in kept:
            kept[call.denoiser] = self._hooked(target, call)
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
        call.run.record(self.name, computed=hooked.computed, layers=len(hooked.layers))
        return output

    def _hooked(self, target: Target, call: DenoiserCall) -> Hooked:
        refuse_compiled(target)  # it may have been compiled since the technique was attached
        planned = planned_steps(target, call.run.arguments)
        steps = len(planned[1]) if planned is not None else _MANY_STEPS
        situation = self._situation(target, call.denoiser, 2 if call.step.branch == "both" else 1, steps)
        samples = len(next(iter(call.kwargs.values())))
        batched = (name for name, value in call.kwargs.items() if _rows(value) == samples)
        situation = replace(situation, batched=tuple(batched))
        reason = self.config.refusal(situation)
        if reason is not None:
            raise UnsupportedError(f"cache: kind={self.config.kind!r}: {reason}; choose another kind")
        return Hooked(unwrapped(call.module), self.config, situation, target.adapter.capability(BlockOutputs))

    def _situation(self, target: Target, denoiser: str, samples: int, steps: int) -> Situation:
        layout = target.layout
        prefix = f"{denoiser}."
        attention = (n.removeprefix(prefix) for n in attention_layers(target) if n.startswith(prefix))
        return Situation(
            steps=steps,
            doubled=layout.guidance is Guidance.BATCHED and samples == 2,
            latents=_axes(layout),
            nested="added_cond_kwargs" in parameter_names(target.denoisers[denoiser]),
            timestep=lambda: 0,
            layers=tuple(attention) + feed_forward_layers(unwrapped(target.denoisers[denoiser])),
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


@hookimpl
def hasten_register_techniques(register: Callable[[type[Cache]], None]) -> None:
    """Offer the technique to the host."""
    register(Cache)
