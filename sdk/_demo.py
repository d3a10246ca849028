"""The demonstration: a trained miniature made faster, next to the honest alternative of fewer steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hasten._generation import Job, generate

if TYPE_CHECKING:
    from PIL.Image import Image

    from hasten._config import Config
    from hasten._report import Report

__all__ = ["ACCELERATED", "BASELINE", "FEWER_STEPS", "Arm", "run_arms"]

BASELINE = "baseline"
ACCELERATED = "accelerated"
FEWER_STEPS = "fewer steps"


@dataclass
class Arm:
    """One configuration of the comparison and what came out of it.

    Args:
        steps: denoising steps.
        images: one per prompt, in order.
        seconds: wall-clock seconds of each batch; batches of all arms are interleaved, so entry ``i`` of two arms
            is a pair measured next to each other on the same prompts and seeds.
        flops: floating-point operations of one pipeline call on the first prompt.
        report: what the techniques did in the last batch, for the accelerated arm.
    """

    steps: int
    images: list[Image]
    seconds: list[float]
    flops: int = 0
    report: Report | None = None


def run_arms(
    pipe: Any, config: Config, job: Job, advance: Callable[[], None] = lambda: None
) -> dict[str, Arm]:
    """Run baseline, accelerated and fewer steps over the same prompts and seeds, batch by batch in turn.

    The number of "fewer steps" is what plain sampling gets done in the accelerated run's time, found from the
    warm-up. ``advance`` is called after every batch of every arm.

    Raises:
        HastenError: from the configuration or the run.
    """
    steps = int(job.call["num_inference_steps"])
    arms = {BASELINE: Arm(steps, [], []), ACCELERATED: Arm(steps, [], [])}
    warm = replace(job, prompts=job.prompts[: job.batch_size])
    pace = {
        name: min(_timed(pipe, config, warm, name, arm)[0] for _ in range(2)) for name, arm in arms.items()
    }
    fewer = max(1, round(steps * pace[ACCELERATED] / pace[BASELINE]))
    arms[FEWER_STEPS] = Arm(fewer, [], [])
    for number, batch in enumerate(_batches(job)):
        for name in _rotated(list(arms), number):
            arm = arms[name]
            seconds, images, arm.report = _timed(pipe, config, batch, name, arm)
            arm.seconds.append(seconds)
            arm.images.extend(images)
            advance()
    for name, arm in arms.items():
        arm.flops = _flops(pipe, config, job, name, arm)
    return arms


def _batches(job: Job) -> Iterator[Job]:
    for start in range(0, len(job.prompts), job.batch_size):
        yield replace(job, prompts=job.prompts[start : start + job.batch_size], seed=job.seed + start)


def _rotated(names: list[str], number: int) -> list[str]:
    # No arm always runs first: whatever a preceding run leaves warm is shared out evenly.
    shift = number % len(names)
    return names[shift:] + names[:shift]


def _timed(
    pipe: Any, config: Config, job: Job, name: str, arm: Arm
) -> tuple[float, list[Image], Report | None]:
    with _mode(pipe, config, name) as acceleration:
        began = time.perf_counter()
        images = [sample.frames[0] for sample in generate(pipe, _with_steps(job, arm))]
        seconds = time.perf_counter() - began
        return seconds, images, acceleration.report() if acceleration is not None else None


def _flops(pipe: Any, config: Config, job: Job, name: str, arm: Arm) -> int:
    from hasten.eval.efficiency import count_flops

    first = replace(job, prompts=job.prompts[:1])
    with _mode(pipe, config, name):
        return count_flops(lambda: list(generate(pipe, _with_steps(first, arm))))


@contextmanager
def _mode(pipe: Any, config: Config, name: str) -> Iterator[Any]:
    import hasten

    with hasten.accelerate(pipe, config) if name == ACCELERATED else nullcontext() as acceleration:
        yield acceleration


def _with_steps(job: Job, arm: Arm) -> Job:
    call: Mapping[str, Any] = {**job.call, "num_inference_steps": arm.steps}
    return replace(job, call=call)
