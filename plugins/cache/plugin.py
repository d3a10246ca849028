"""The technique ``cache``: claims, checks, one handler."""

# ruff: noqa: ARG002 (the host passes arguments that a technique may not need)
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

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
    planned_steps,
    refuse_compiled,
    unwrapped,
)
from hasten.plugins.cache.blocks import refusal
from hasten.plugins.cache.config import CacheConfig, Situation
from hasten.plugins.cache.hooked import Hooked

__all__ = ["Cache"]

Proceed = Callable[[DenoiserCall], object]
_FEWEST_STEPS = 6


class Cache(Technique[CacheConfig]):
    """Reuses or extrapolates what layers computed at earlier steps, by the caches that come with diffusers."""

    name = "cache"
    summary = "reuses what layers computed at earlier steps, by the caches of diffusers"
    config_class = CacheConfig
    requires = (LatentLayout,)
    sameness = "close"

    def claims(self, target: Target) -> list[Claim]:
        """Layers that are skipped compute no attention. Memory is dropped when the number of tokens changes."""
        claims = [Claim("attention.self", Access.EXCLUSIVE), Claim("tokens.shape", Access.READS)]
        if self.config.kind == "faster":
            claims.append(Claim("batch.branches", Access.EXCLUSIVE))
        return claims

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse compiled denoisers, hooks that are there already, and layers that diffusers does not know."""
        try:
            refuse_compiled(target)
        except UnsupportedError as error:
            return [Finding("error", str(error))]
        outputs = target.adapter.capability(BlockOutputs)
        for name, model in target.denoisers.items():
            if any(getattr(vars(part).get("_diffusers_hook"), "hooks", {}) for part in model.modules()):
                return [
                    Finding("error", f"{name} has hooks of diffusers already (offloading); remove them first")
                ]
            reason = refusal(model, outputs) if self.config.blocks else None
            if reason is None:
                try:
                    Hooked(model, self.config, self._situation(target, name, 2, 50), outputs)
                except UnsupportedError as error:
                    return [Finding("error", str(error))]
                continue
            return [Finding("error", f"kind={self.config.kind!r}: {reason}; choose another kind")]
        return []

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:
        """Refuse calls that the kind cannot work in; say that a call has too few steps to reuse anything."""
        name = next(iter(target.denoisers))
        planned = planned_steps(target, arguments)
        steps = len(planned[1]) if planned is not None else 50
        reason = self.config.refusal(self._situation(target, name, branches(target, arguments), steps))
        if reason is not None:
            yield Finding("error", f"kind={self.config.kind!r}: {reason}")
        if steps < _FEWEST_STEPS:
            yield Finding("warning", f"{steps} steps are too far apart for a cache to reuse much of them")

    def attach(self, target: Target, seams: Seams) -> None:
        """One handler around every denoiser forward."""
        seams.denoiser(lambda call, proceed: self._forward(target, call, proceed))

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:
        """Say that nothing was reused."""
        facts = [step.facts[self.name] for step in steps if self.name in step.facts]
        if all(fact["computed"] == fact["layers"] for fact in facts):
            yield "no layer's output was reused"

    def _forward(self, target: Target, call: DenoiserCall, proceed: Proceed) -> object:
        kept = call.run.state(self.name)  # emptied when the level rises, dropped when the run ends
        model = unwrapped(call.module)
        if call.denoiser not in kept:
            refuse_compiled(target)  # again: it may have been compiled since the technique was attached
            planned = planned_steps(target, call.run.arguments)
            steps = len(planned[1]) if planned is not None else 50
            situation = self._situation(target, call.denoiser, 2 if call.step.branch == "both" else 1, steps)
            outputs = target.adapter.capability(BlockOutputs)
            kept[call.denoiser] = Hooked(model, self.config, situation, outputs)
        hooked: Hooked = kept[call.denoiser]
        with hooked.forward(call.step.branch, call.step.noise.time):
            output = proceed(call)
        call.run.record(self.name, computed=hooked.computed, layers=hooked.layers)
        return output

    def _situation(self, target: Target, denoiser: str, samples: int, steps: int) -> Situation:
        layout = target.layout
        prefix = f"{denoiser}."
        return Situation(
            steps=steps,
            doubled=layout.guidance is Guidance.BATCHED and samples == 2,
            latents=_axes(layout),
            timestep=lambda: 0,
            attention=tuple(
                name.removeprefix(prefix) for name in attention_layers(target) if name.startswith(prefix)
            ),
        )


def _axes(layout: LatentLayout) -> str | None:
    """Order of the latents' axes as diffusers names them, ``None`` where they are packed into tokens."""
    if not isinstance(layout, ImageLayout):
        return None
    batch, channels, frames, height, width = 1, 2, 3, 4, 6
    extent = (height, width) if layout.ndim == 4 else (frames, height, width)
    arranged = layout.arrange(torch.empty(batch, channels, *extent)).shape
    known = {(1, 2, 4, 6): "BCHW", (1, 2, 3, 4, 6): "BCFHW", (1, 3, 2, 4, 6): "BFCHW"}
    return known.get(tuple(arranged))


@hookimpl
def hasten_register_techniques(register: Callable[[type[Cache]], None]) -> None:
    """Offer the technique to the host."""
    register(Cache)
