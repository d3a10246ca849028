"""Classifier-free guidance in a limited interval of noise levels, as a plugin for `hasten`.

Guidance costs a second forward (or a doubled batch) at every step, and at the last, almost clean levels it changes
little (Kynkäänniemi et al., 2024, arXiv 2404.07724). Outside of the interval this technique computes the conditional
branch alone and hands it to the pipeline as both branches: ``u + w * (c - u)`` is then ``c`` at any scale ``w``.
"""

# ruff: noqa: ARG002 (the host passes arguments that a technique may not need)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator

import hasten
from hasten.extend import Guidance, LatentLayout


class GuidanceIntervalConfig(hasten.TechniqueConfig):
    """Levels are flow-equivalent: 1 is pure noise, 0 is clean."""

    start: float = Field(1.0, ge=0, le=1, description="highest level with guidance")
    stop: float = Field(0.3, ge=0, le=1, description="lowest level with guidance")

    @model_validator(mode="after")
    def _ordered(self) -> GuidanceIntervalConfig:
        if self.start < self.stop:
            raise ValueError(f"start ({self.start}) must not be below stop ({self.stop})")
        return self


class GuidanceInterval(hasten.Technique[GuidanceIntervalConfig]):
    """Skips the unconditional branch outside of an interval of levels."""

    name = "guidance_interval"
    summary = "classifier-free guidance only between two noise levels"
    config_class = GuidanceIntervalConfig
    requires = (LatentLayout,)

    def claims(self, target: Any) -> Sequence[hasten.Claim]:
        """Halving the batch and answering for a branch leaves no room for another that does so."""
        return [hasten.Claim("batch.branches", hasten.Access.EXCLUSIVE)]

    def check(self, target: Any) -> Sequence[hasten.Finding]:
        """A guidance-distilled model has no second branch to save."""
        if target.layout.guidance is Guidance.EMBEDDED:
            return [
                hasten.Finding("error", "the model is guidance-distilled and runs no unconditional branch")
            ]
        return []

    def attach(self, target: Any, seams: Any) -> None:
        """One handler around every denoiser forward."""
        seams.denoiser(self._forward)

    def _forward(self, call: Any, proceed: Any) -> Any:
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

    def _conditional_half(self, call: Any, proceed: Any) -> Any:
        batch = len(next(iter(call.kwargs.values())))
        output = proceed(call.replace_kwargs(_second_half(call.kwargs, batch)))
        call.run.record(self.name, skipped="uncond")
        sample = call.sample(output)
        return call.with_sample(output, torch.cat([sample, sample]))


def _second_half(value: Any, batch: int) -> Any:
    """The conditional half of everything that has a batch dimension; diffusers puts the unconditional one first."""
    if isinstance(value, torch.Tensor):
        return value[batch // 2 :] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {name: _second_half(item, batch) for name, item in value.items()}
    return value


@hasten.hookimpl
def hasten_register_techniques(register: Any) -> None:
    """Offer the technique to `hasten`."""
    register(GuidanceInterval)
