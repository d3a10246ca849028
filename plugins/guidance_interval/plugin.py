"""Classifier-free guidance only in an interval of noise levels.

Guidance costs a second forward, or a doubled batch, at every step. At the last, almost clean levels it changes little
(Kynkäänniemi et al., 2024, arXiv 2404.07724). Outside of the interval this technique computes the conditional branch
alone and hands it to the pipeline as both branches: ``u + w * (c - u)`` is then ``c`` at any scale ``w``.
"""

# ruff: noqa: ARG002 (the host passes arguments that a technique may not need)
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from hasten.extend import (
    Access,
    Between,
    Claim,
    Finding,
    Forecast,
    Guidance,
    LatentLayout,
    Technique,
    TechniqueConfig,
    hookimpl,
)

if TYPE_CHECKING:  # these load torch, which a listing of techniques has no need of
    from hasten.extend import DenoiserCall, Seams, StepRecord, Target

    Proceed = Callable[[DenoiserCall], object]


class GuidanceIntervalConfig(TechniqueConfig):
    """Levels are flow-equivalent: 1 is pure noise, 0 is clean."""

    start: float = Field(1.0, ge=0, le=1, description="highest level with guidance")
    stop: Annotated[float, Between(0.1, 0.8, dial=True)] = Field(
        0.3, ge=0, le=1, description="lowest level with guidance"
    )

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

    def check_call(self, target: Target, arguments: Mapping[str, object]) -> list[Finding]:
        """Say that the call has no guidance, or that its levels are all guided."""
        from hasten.extend import branches, planned_steps, third_branch

        if third := third_branch(arguments):
            return [Finding("error", _THIRD.format(third))]
        if branches(target, arguments) == 1:
            return [Finding("warning", "this call is without guidance, so there is no branch to skip")]
        planned = planned_steps(target, arguments)
        if planned is None or any(not self._guided(level.time) for level, _ in planned[1]):
            return []
        told = f"{self.config.stop:g} to {self.config.start:g}"
        return [Finding("warning", f"every step of this call has a level in {told} and keeps its guidance")]

    def forecast(self, target: Target, arguments: Mapping[str, object], before: Forecast) -> Forecast:
        """Half the cost at every level outside of the interval."""
        from hasten.extend import branches

        halves = branches(target, arguments) == 2
        steps = tuple(
            step.changed(0.5, "no guidance") if halves and not self._guided(step.level) else step
            for step in before.steps
        )
        return replace(before, steps=steps, facts={})

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:
        """Say that nothing was saved."""
        if not any("skipped" in step.facts.get(self.name, {}) for step in steps):
            yield "no unconditional forward was skipped"

    def _guided(self, level: float) -> bool:
        return self.config.stop <= level <= self.config.start

    def _forward(self, call: DenoiserCall, proceed: Proceed) -> object:
        if self._guided(call.step.noise.time):
            return proceed(call)
        if call.step.branch == "both":
            return self._conditional_half(call, proceed)
        state = call.run.state(self.name)  # dropped when the run ends, emptied when the level rises
        kept = state.setdefault((call.denoiser, call.step.index), [])
        if call.step.branch == "uncond" and kept:
            call.run.record(self.name, skipped="uncond")
            return kept.pop(0)  # in order: a technique may divide a forward into several
        output = proceed(call)
        if call.step.branch == "cond":
            kept.append(output)
        return output

    def _conditional_half(self, call: DenoiserCall, proceed: Proceed) -> object:
        from hasten.extend import UnsupportedError, third_branch

        if third := third_branch(call.run.arguments):
            raise UnsupportedError(_THIRD.format(third))
        layout = call.run.target.layout
        batch = len(next(iter(call.kwargs.values())))
        half = slice(batch // 2) if layout.conditional_first else slice(batch // 2, None)
        halves = {
            name: _features(value, batch, half) if name in layout.controls else _rows(value, batch, half)
            for name, value in call.kwargs.items()
        }
        output = proceed(call.replace_kwargs(halves))
        call.run.record(self.name, skipped="uncond")
        sample = call.sample(output)
        twice = [*sample, *sample] if isinstance(sample, list) else sample.repeat(2, *[1] * (sample.ndim - 1))
        return call.with_sample(output, twice)


_THIRD = "{} computes a third branch in the same forward, and only one of two can be skipped"


def _rows(value: Any, batch: int, half: slice) -> Any:
    """Half of the rows of everything that has a batch dimension."""
    from torch import Tensor

    if isinstance(value, Mapping):
        return {name: _rows(item, batch, half) for name, item in value.items()}
    counted = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
    return value[half] if counted and len(value) == batch else value


def _features(value: Any, batch: int, half: slice) -> Any:
    """Half of the rows of control features: tensors in lists, one for each layer, not for each sample."""
    if isinstance(value, (list, tuple)):
        return type(value)(_features(item, batch, half) for item in value)
    return _rows(value, batch, half)


@hookimpl
def hasten_register_techniques(register: Callable[[type[GuidanceInterval]], None]) -> None:
    """Offer the technique to `hasten`."""
    register(GuidanceInterval)
