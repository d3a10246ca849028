"""A scheduler that contains one scheduler for each stage: a pipeline loops over it once.

It is a copy of the pipeline's scheduler whose class is a generated subclass of the same name, because pipelines check
classes and signatures. The current stage is found by counting calls of ``step``: noise levels rise between stages and
occur more than once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from hasten.extend import HastenError, levels_of
from hasten.plugins.bottleneck.stages import PlannedStage, stage_scheduler
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from hasten.extend import Target

__all__ = ["StageRun", "Switch", "staged_scheduler"]

Switch = Callable[[Tensor, tuple[int, int], tuple[int, int], "StageRun"], Tensor]
"""``(sample, size, next size, run) -> sample``: takes a sample from one stage to the next."""


class StageRun:
    """The stages of a run, and its position in them.

    Args:
        base: the pipeline's scheduler; it is not changed.
        planned: the stages.
        hand_over_estimate: end a stage at the start level of the next one, with its estimate of the clean latents.
    """

    switch: Switch | None = None
    """Makes the first sample of a stage from the last one of the stage before. Not needed for planning."""

    def __init__(
        self, base: Any, planned: Sequence[PlannedStage], *, hand_over_estimate: bool = False
    ) -> None:
        self._base = base
        self.planned = tuple(planned)
        self._hand_over_estimate = hand_over_estimate
        self.schedulers: list[Any] = []
        self.times: list[Tensor] = []
        """Timesteps of each stage."""
        self._sigmas: list[Tensor] = []
        self._first: list[int] = []
        self.stage = 0
        self.position = 0

    @property
    def size(self) -> tuple[int, int]:
        """Latent height and width of the current stage."""
        return self.planned[self.stage].size

    @property
    def scheduler(self) -> Any:
        """The current stage's scheduler."""
        return self.schedulers[self.stage]

    def prepare(self, device: torch.device | str | None, mu: float | None) -> None:
        """Set the timesteps of every stage and return to the first stage."""
        made = [stage_scheduler(self._base, planned, device, mu) for planned in self.planned]
        self.schedulers = [scheduler for scheduler, _ in made]
        self._first = [first for _, first in made]
        self.times = [scheduler.timesteps[first:] for scheduler, first in made]
        self._sigmas = [
            scheduler.sigmas[first : first + len(times)] if hasattr(scheduler, "sigmas") else times.float()
            for (scheduler, first), times in zip(made, self.times)
        ]
        self.stage = self.position = 0
        if self._hand_over_estimate:
            self._cut_overlaps()

    def _cut_overlaps(self) -> None:
        """Drop the steps of a stage below the start level of the next one, which would add noise to them again."""
        for i in range(len(self.times) - 1):
            reached = self._sigmas[i][1:] <= self._sigmas[i + 1][0]
            kept = int(reached.int().argmax()) + 1 if bool(reached.any()) else len(self.times[i])
            self.times[i], self._sigmas[i] = self.times[i][:kept], self._sigmas[i][:kept]

    def levels(self, target: Target) -> list[list[NoiseLevel]]:
        """Noise levels of each stage."""
        return [
            levels_of(target, scheduler)[first : first + len(times)]
            for scheduler, first, times in zip(self.schedulers, self._first, self.times)
        ]

    def timesteps(self) -> Tensor:
        """Timesteps of all stages, one after the other."""
        return torch.cat(self.times)

    def sigmas(self) -> Tensor:
        """Sigmas of all stages as the schedulers define them, with a final 0."""
        last = self._sigmas[-1]
        return torch.cat([*self._sigmas, last.new_zeros(1)])

    def step(self, bound: inspect.BoundArguments) -> Any:
        """Run one solver step of the current stage, and switch to the next stage after its last step."""
        if self.stage > 0 and self.position == 0:
            # Samples of the last stage have another shape; the loop of CogVideoX keeps them for its solver.
            for name in ("old_pred_original_sample", "timestep_back"):
                if name in bound.arguments:
                    bound.arguments[name] = None
        ends = self.position == len(self.times[self.stage]) - 1
        switches = ends and self.stage < len(self.planned) - 1
        if switches and self._hand_over_estimate:
            sigma = float(self._sigmas[self.stage][self.position])
            result: Any = _flow_estimate(bound, sigma)
        else:
            result = self.scheduler.step(*bound.args, **bound.kwargs)
        self.position += 1
        if not switches:
            return result
        size = self.size
        self.stage, self.position = self.stage + 1, 0
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        if self.switch is None:
            raise HastenError("these stages are only a plan: set 'switch' before running them")
        return _with_sample(result, self.switch(previous, size, self.size, self))


def _flow_estimate(bound: inspect.BoundArguments, sigma: float) -> Any:
    """``x0 = x - t v`` of the guided prediction, in the form that ``step`` returns."""
    sample, velocity = bound.arguments["sample"], bound.arguments["model_output"]
    estimate: Tensor = (sample.float() - sigma * velocity.float()).to(sample.dtype)
    return SchedulerOutput(prev_sample=estimate) if bound.arguments.get("return_dict", True) else (estimate,)


def _with_sample(result: Any, sample: Tensor) -> Any:
    if isinstance(result, tuple):
        return (sample, *result[1:])
    return dataclasses.replace(result, prev_sample=sample)


def staged_scheduler(base: Any, run: StageRun) -> Any:
    """A copy of ``base`` that steps through the stages of ``run``."""
    staged = copy.deepcopy(base)
    stock: Any = type(base)
    staged.__class__ = _staged_class(stock)
    staged.stage_run = run
    return staged


@cache
def _staged_class(base: Any) -> type:
    """A subclass of ``base`` with the same name and signatures."""

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(base.set_timesteps).bind(self, *args, **kwargs).arguments
        run: StageRun = self.stage_run
        run.prepare(given.get("device"), given.get("mu"))
        self.timesteps, self.num_inference_steps = run.timesteps(), len(run.timesteps())
        if hasattr(base, "sigmas") or "sigmas" in vars(self):
            self.sigmas = run.sigmas()

    @functools.wraps(base.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        run: StageRun = self.stage_run
        if not run.schedulers:
            raise HastenError(
                "the pipeline stepped its scheduler before setting timesteps; restart mode cannot follow"
            )
        return run.step(inspect.signature(run.scheduler.step).bind(*args, **kwargs))

    def ignore(self: Any, *args: Any, **kwargs: Any) -> None:
        """Ignored: every stage has its own begin index and shift."""

    def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scaled: Tensor = self.stage_run.scheduler.scale_model_input(sample, *args, **kwargs)
        return scaled

    body: dict[str, Any] = {"set_timesteps": set_timesteps, "step": step, "__module__": base.__module__}
    for name in ("set_begin_index", "set_shift"):
        if hasattr(base, name):
            body[name] = ignore
    if hasattr(base, "scale_model_input"):
        body["scale_model_input"] = scale_model_input
    return type(base.__name__, (base,), body)
