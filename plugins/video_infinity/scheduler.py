"""The scheduler of a divided run: steps the frames of one rank as part of the whole video.

Noise is drawn for all frames and sliced, so it does not depend on the number of processes. Steps that a checkpoint
replaces are skipped: the pipeline runs its loop, and nothing is computed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hasten.extend import Scheduler
from hasten.plugins.video_infinity.checkpoint import ClipState, collect, rebuild
from hasten.plugins.video_infinity.division import gather_latents
from hasten.plugins.video_infinity.session import Session
from hasten.plugins.video_infinity.whole_noise import WholeNoise

__all__ = ["divided_scheduler", "scheduler_refusal"]

_LATENTS = "latents"


def scheduler_refusal(scheduler: Scheduler) -> str | None:
    """The reason why a scheduler cannot step parts of a sample, or ``None`` if it can."""
    name = type(scheduler).__name__
    if scheduler.config.get("thresholding", False):
        return f"{name} with thresholding=True needs a quantile of the whole sample"
    if name == "DPMSolverSDEScheduler":
        return "DPMSolverSDEScheduler draws its noise in a way that cannot be divided by frames"
    if getattr(scheduler, "order", 1) > 1:
        return f"{name} calls the denoiser {scheduler.order} times a step, which resuming cannot tell apart"
    return None


def divided_scheduler(scheduler: Scheduler, session: Session) -> Any:
    """A copy of ``scheduler`` for one run; its class is a subclass of the same name."""
    stock = type(scheduler)
    signature = inspect.signature(stock.step)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        if session.skipping:
            skipped = _skip(self, session, given["sample"], given.get("return_dict", True))
            return _joined(self, session, skipped, given["timestep"])
        with WholeNoise(session, session.mixing.sample, given["sample"].shape):
            result = stock.step(self, *args, **kwargs)
        session.done += 1
        _save(self, session, result)
        return _joined(self, session, result, given["timestep"])

    step.__signature__ = signature  # type: ignore[attr-defined]  # pipelines look at its parameters
    make: Any = type(stock)
    copied = copy.deepcopy(scheduler)
    copied.__class__ = make(stock.__name__, (stock,), {"step": step, "__module__": stock.__module__})
    return copied


def _joined(scheduler: Scheduler, session: Session, result: Any, timestep: Any) -> Any:
    """What a step returned, with the sample of the whole video after the last step of a pipeline that decodes it."""
    if not session.whole_at_end or float(timestep) != float(scheduler.timesteps[-1]):
        return result
    values = result if isinstance(result, tuple) else (result.prev_sample,)
    whole = gather_latents(session, values[0], session.mixing.sample)
    if isinstance(result, tuple):
        return (whole, *result[1:])
    result.prev_sample = whole
    return result


def _save(scheduler: Scheduler, session: Session, result: Any) -> None:
    """Write the checkpoints of this rank's clips, if they are due after this step."""
    store = session.checkpoints
    due = session.done % session.config.checkpoint_every == 0 or session.done == session.steps
    if store is None or not due or session.processes.branch:
        return
    tensors = _outputs(result)
    held, axis = session.held, session.mixing.sample
    generator = session.generator.get_state()
    for clip in session.assignment.here:
        frames = session.assignment.clips[clip]
        part = range(frames.start - held.start, frames.stop - held.start)

        def own(tensor: Tensor, part: range = part) -> Tensor | None:
            if tensor.shape != tensors[_LATENTS].shape:
                return None
            return axis.take(tensor, len(held), part)

        kept = {name: value for name, value in ((n, own(t)) for n, t in tensors.items()) if value is not None}
        solver = _solver_state(scheduler, own, kept)
        kept["generator"] = generator
        facts = {
            "clip": clip,
            "frames": [frames.start, frames.stop],
            "solver": solver,
            "outputs": list(tensors),
        }
        store.save(session.done, clip, ClipState(kept, facts))
    # All ranks took part in this step, so all have written the previous one.
    store.prune(set(sorted(store.steps(session.assignment.here))[-2:]), session.assignment.here)


def _outputs(result: Any) -> dict[str, Tensor]:
    """Tensors that a step returned, starting with the new sample."""
    values = result if isinstance(result, tuple) else (result.prev_sample,)
    tensors = [value for value in values if isinstance(value, Tensor)]
    return {_LATENTS if index == 0 else f"output {index}": tensor for index, tensor in enumerate(tensors)}


def _solver_state(
    scheduler: Scheduler, own: Callable[[Tensor], Tensor | None], kept: dict[str, Tensor]
) -> dict[str, Any]:
    """The state of a multistep solver between steps; its tensors go to ``kept``."""
    state = {}
    for name, value in vars(scheduler).items():
        if name in ("_internal_dict", "config"):
            continue
        try:
            state[name] = collect(value, f"solver {name}", own, kept)
        except TypeError:
            continue  # a table that set_timesteps recomputes
    return state


def _skip(scheduler: Scheduler, session: Session, sample: Tensor, return_dict: bool) -> Any:
    """A step that a checkpoint replaces; the last one returns the stored state."""
    session.done += 1
    outputs = [sample, sample]
    if session.done == session.resume_at:
        outputs = _restore(scheduler, session, sample)
    if return_dict:
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        return SchedulerOutput(prev_sample=outputs[0])
    return tuple(outputs)


def _restore(scheduler: Scheduler, session: Session, sample: Tensor) -> list[Tensor]:
    saved, session.saved = session.saved, []
    lengths = [len(session.assignment.clips[clip]) for clip in session.assignment.here]
    parts: list[Mapping[str, Tensor]] = [one.tensors for one in saved]

    def join(tensors: list[Tensor]) -> Tensor:
        return session.mixing.sample.join(tensors, lengths).to(sample.device)

    for name, described in saved[0].facts["solver"].items():
        value, now = rebuild(described, parts, join, sample.device), getattr(scheduler, name, None)
        if isinstance(value, Tensor) and isinstance(now, Tensor):
            value = value.to(now.device)  # small tables of the solver are on the device of the sample
        setattr(scheduler, name, value)
    session.generator.set_state(parts[0]["generator"])
    names = [name for name in saved[0].facts["outputs"] if name in parts[0]]
    return [join([part[name] for part in parts]) for name in names]
