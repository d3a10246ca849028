"""Other solvers for a pipeline: of the same noise path and prediction, with the pipeline's own noise schedule."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hasten._adapters.base import LatentLayout, Prediction
from hasten._errors import ConfigError, suggestion
from hasten._pipeline import Pipeline
from hasten._swap import swapped
from hasten._target import Target

__all__ = ["other_solvers", "own_solver", "solving_with", "use_solver"]

_NAMES = {
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "UniPCMultistepScheduler": "UniPC",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
}
_FLOW = (Prediction.VELOCITY, Prediction.NEGATIVE_VELOCITY)


def other_solvers(pipe: Pipeline) -> dict[str, Any]:
    """Name -> scheduler that could take the place of the pipeline's own, which is not among them.

    Flow models: Euler and UniPC. Variance-preserving models: DPM-Solver++ and UniPC. None for pipelines without a
    scheduler of that kind.
    """
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    layout = Target.of(pipe).adapter.capability(LatentLayout)
    if layout is None:
        return {}
    config = pipe.scheduler.config
    if layout.prediction(pipe) in _FLOW:
        shift = config.get("shift", config.get("flow_shift", 1.0))
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        made = {
            "Euler": _made(FlowMatchEulerDiscreteScheduler, config, shift=shift),
            "UniPC": _made(UniPCMultistepScheduler, config, **flow),
        }
    else:
        made = {
            "DPM++ 2M": _made(DPMSolverMultistepScheduler, config),
            "UniPC": _made(UniPCMultistepScheduler, config),
        }
    own = type(pipe.scheduler)
    return {name: scheduler for name, scheduler in made.items() if type(scheduler) is not own}


def own_solver(pipe: Pipeline) -> str:
    """Name of the pipeline's own solver, as :func:`other_solvers` has it for another pipeline."""
    kind = type(getattr(pipe, "scheduler", None)).__name__
    return _NAMES.get(kind, kind.removesuffix("Scheduler"))


def _made(kind: type[Any], config: Any, **given: Any) -> Any:
    """A scheduler with what it knows of another's configuration: the noise schedule, not the solver's own options."""
    known = inspect.signature(kind.__init__).parameters
    shared = {key: config[key] for key in known if key in config and not key.startswith("solver_")}
    return kind(**{**shared, **given})


def use_solver(pipe: Pipeline, solver: str) -> None:
    """Give a pipeline another solver for good.

    Args:
        pipe: the stock pipeline.
        solver: a name of :func:`other_solvers`, or that of the pipeline's own, which stays then.

    Raises:
        ConfigError: no such solver suits the pipeline.
    """
    own, others = own_solver(pipe), other_solvers(pipe)
    if solver in others:
        pipe.scheduler = others[solver]
    elif solver != own:
        names = [own, *others]
        raise ConfigError(
            f"solver {solver!r} is none that suits this {type(pipe).__name__}{suggestion(solver, names)} "
            f"Solvers: {', '.join(names)}; the first one is its own."
        )


@contextmanager
def solving_with(pipe: Pipeline, solver: str | None) -> Iterator[None]:
    """The pipeline with another solver for the length of a ``with`` block; ``None`` is its own.

    Args:
        pipe: the stock pipeline.
        solver: a name of :func:`other_solvers`.
    """
    if solver is None:
        yield
        return
    with swapped(pipe, "scheduler", other_solvers(pipe)[solver]):
        yield
