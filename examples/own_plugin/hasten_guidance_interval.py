"""Classifier-free guidance in a limited interval of noise levels, as a plugin for `hasten`.

Guidance costs a second forward (or a doubled batch) at every step, and at the last, almost clean levels it changes
little (Kynkäänniemi et al., 2024, arXiv 2404.07724). Outside of the interval this technique computes the conditional
branch alone and hands it to the pipeline as both branches: ``u + w * (c - u)`` is then ``c`` at any scale ``w``.
"""

# ruff: noqa: ARG002 (the host passes arguments that a technique may not need)
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pydantic import Field, model_validator

from hasten.extend import (
    Access,
    Claim,
    DenoiserCall,
    Finding,
    Guidance,
    LatentLayout,
    Seams,
    Target,
    Technique,
    TechniqueConfig,
    hookimpl,
)

Proceed = Callable[[DenoiserCall], object]
"""Computes the forward: the next technique, or the denoiser itself."""


class GuidanceIntervalConfig(TechniqueConfig):
    """Levels are flow-equivalent: 1 is pure noise, 0 is clean."""

    start: float = Field(1.0, ge=0, le=1, description="highest level with guidance")
    stop: float = Field(0.3, ge=0, le=1, description="lowest level with guidance")

    @model_validator(mode="after")
    def _ordered(self) -> GuidanceIntervalConfig:
        if self.start < self.stop:
            raise ValueError(f"start ({self.start}) must not be below stop ({self.stop})")
        return self


class GuidanceInterval(Technique[GuidanceIntervalConfig]):
    """Skips the unconditional branch outside of an interval of levels."""

    name = "guidance_interval"
    summary = "classifier-free guidance only between two noise levels"
    config_class = GuidanceIntervalConfig
    requires = (LatentLayout,)

    def claims(self, target: Target) -> list[Claim]:
        """Halving the batch and answering for a branch leaves no room for another that does so."""
        return [Claim("batch.branches", Access.EXCLUSIVE)]

    def check(self, target: Target) -> list[Finding]:
        """A guidance-distilled model has no second branch to save."""
        if target.layout.guidance is Guidance.EMBEDDED:
            return [Finding("error", "the model is guidance-distilled and runs no unconditional branch")]
        return []

    def attach(self, target: Target, seams: Seams) -> None:
        """One handler around every denoiser forward."""
        seams.denoiser(self._forward)

    def _forward(self, call: DenoiserCall, proceed: Proceed) -> object:
        if self.config.stop <= call.step.noise.time <= self.config.start:
            return proceed(call)
        if call.step.branch == "both":
            return self._conditional_half(call, proceed)
        state = call.run.state(self.name)  # dropped when the run ends, emptied when the level rises
        if call.step.branch == "uncond" and state.get("step") == call.step.index:
            call.run.record(self.name, skipped="uncond")
            return state["output"]
        output = proceed(call)
        if call.step.branch == "cond":
            state.update(step=call.step.index, output=output)
        return output

    def _conditional_half(self, call: DenoiserCall, proceed: Proceed) -> object:
        batch = len(next(iter(call.kwargs.values())))
        halves = {name: _second_half(value, batch) for name, value in call.kwargs.items()}
        output = proceed(call.replace_kwargs(halves))
        call.run.record(self.name, skipped="uncond")
        sample = call.sample(output)
        return call.with_sample(output, torch.cat([sample, sample]))


def _second_half(value: object, batch: int) -> object:
    """The conditional half of everything that has a batch dimension; diffusers puts the unconditional one first."""
    if isinstance(value, torch.Tensor):
        return value[batch // 2 :] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {name: _second_half(item, batch) for name, item in value.items()}
    return value


@hookimpl
def hasten_register_techniques(register: Callable[[type[GuidanceInterval]], None]) -> None:
    """Offer the technique to `hasten`."""
    register(GuidanceInterval)
