"""Baseline, configurations and controls over the same prompts and seeds, batch by batch in turn.

Everything here works in memory; :mod:`hasten.eval.compare.run` adds the folder.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

from hasten.commands import Job, Sample, generate
from hasten.extend import Pipeline, Sameness

if TYPE_CHECKING:
    from hasten import Acceleration
    from hasten.commands import Config
    from hasten.eval.efficiency.timing import Timings
    from hasten.extend import Report

__all__ = [
    "AT_KNEE",
    "BASELINE",
    "CONTROLS",
    "FEWER_STEPS",
    "KNEE",
    "OTHER_SEED",
    "REPEAT",
    "ROUNDS",
    "Arm",
    "Turn",
    "control_arms",
    "equal_time_steps",
    "flops_of",
    "profile",
    "turns",
    "warm_up",
]

ROUNDS = 5
"""Of a warm-up: two that something disturbed must not decide the steps of the equal-time control."""
BASELINE = "baseline"
REPEAT = "repeat"
OTHER_SEED = "other seed"
FEWER_STEPS = "fewer steps"
KNEE = "knee"
AT_KNEE = " at the knee"
"""What the names of candidates that begin at the knee end with."""
CONTROLS = (REPEAT, OTHER_SEED, FEWER_STEPS)
"""The rows without which the others can't be read."""

_NAMED = 3
"""From so many candidates on, a control that they share is named after its steps."""
_TYPICAL = 16
"""Prompts that stand for the list where the cost depends on the prompt."""
_SEED_OFFSET = 2**31
"""Between the seeds of the baseline and those of the other-seed control; further than any prompt list is
long.
"""

SAMENESS = get_args(Sameness)
"""From the strongest promise to the weakest."""

Role = Literal["baseline", "candidate", "control"]


@dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Args:
        name: unique in the comparison.
        role: a control shows how to read the candidates' figures and is never judged itself.
        steps: denoising steps.
        config: techniques to enable, ``None`` for the stock pipeline.
        seed_offset: added to every seed.
        time_of: candidates whose time it takes, of the equal-time control.
        solver: of :func:`hasten.commands.other_solvers`; ``None`` for the pipeline's own.
    """

    name: str
    role: Role
    steps: int
    config: Config | None = None
    seed_offset: int = 0
    time_of: tuple[str, ...] = ()
    solver: str | None = None

    @property
    def sameness(self) -> Sameness | None:
        """The weakest promise of its techniques about the same seed; ``None`` without techniques."""
        from hasten.commands import host

        promises = (
            [host().technique(entry.name).sameness for entry in self.config.techniques] if self.config else []
        )
        return max(promises, key=SAMENESS.index, default=None)

    @property
    def varies_by_prompt(self) -> bool:
        """Whether one of its techniques takes longer for some prompts than for others."""
        from hasten.commands import host

        entries = self.config.techniques if self.config else ()
        return any(host().technique(entry.name).varies_by_prompt for entry in entries)

    def job(self, job: Job) -> Job:
        """``job`` with this arm's steps and seeds."""
        call: Mapping[str, Any] = {**job.call, "num_inference_steps": self.steps}
        return replace(job, call=call, seed=job.seed + self.seed_offset)

    @contextmanager
    def attached(self, pipe: Pipeline) -> Iterator[Acceleration | None]:
        """The pipeline with this arm's solver and techniques for the length of a ``with`` block."""
        import hasten
        from hasten.commands import solving_with

        with solving_with(pipe, self.solver):
            if self.config is None:
                yield None
            else:
                with hasten.accelerate(pipe, self.config) as acceleration:
                    yield acceleration


@dataclass(frozen=True)
class Turn:
    """One batch of one arm: its pictures, its wall-clock seconds, and what the techniques did in it."""

    arm: Arm
    batch: int
    samples: tuple[Sample, ...]
    seconds: float
    report: Report | None


def control_arms(
    steps: int,
    fewer: Mapping[str, int],
    controls: Collection[str] = CONTROLS,
    solvers: Mapping[str, str | None] | None = None,
) -> list[Arm]:
    """The control rows.

    Args:
        steps: of the baseline.
        fewer: candidate -> steps that plain sampling gets done in that candidate's time.
        controls: which of :data:`CONTROLS` are wanted.
        solvers: candidate -> its solver, which its equal-time control has too.

    Returns:
        The baseline once more (what differs is not due to any technique), the baseline from other noise (how
        much two equally good pictures differ), and for each candidate plain sampling in the same time; candidates
        that come to the same number of steps of the same solver share a row.
    """
    arms = []
    if REPEAT in controls:
        arms.append(Arm(REPEAT, "control", steps))
    if OTHER_SEED in controls:
        arms.append(Arm(OTHER_SEED, "control", steps, seed_offset=_SEED_OFFSET))
    if FEWER_STEPS in controls:
        plain = {name: (count, (solvers or {}).get(name)) for name, count in fewer.items()}
        for count, solver in dict.fromkeys(plain.values()):
            names = tuple(name for name, wanted in plain.items() if wanted == (count, solver))
            several = f"{count} of {steps}" + (f", {solver}" if solver else "")
            label = ", ".join(names) if len(names) < _NAMED else several
            title = FEWER_STEPS if len(names) == len(fewer) else f"{FEWER_STEPS} ({label})"
            arms.append(Arm(title, "control", count, time_of=names, solver=solver))
    return arms


def turns(
    pipe: Pipeline,
    arms: Sequence[Arm],
    job: Job,
    wanted: Callable[[Arm, int], bool] | None = None,
) -> Iterator[Turn]:
    """Run every wanted batch of every arm. Batch ``i`` of all arms runs back to back, each time in another
    order.

    Raises:
        HastenError: from a configuration or the run.
    """
    for number, start in enumerate(range(0, len(job.prompts), job.batch_size)):
        batch = replace(job, prompts=job.prompts[start : start + job.batch_size], seed=job.seed + start)
        # No arm always runs first: whatever a preceding run leaves warm is shared out evenly.
        shift = number % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            if wanted is None or wanted(arm, number):
                yield _turn(pipe, arm, batch, number, start)


def _turn(pipe: Pipeline, arm: Arm, batch: Job, number: int, start: int) -> Turn:
    from hasten.eval.efficiency.timing import synchronize

    device = getattr(pipe, "device", None)
    with arm.attached(pipe) as acceleration:
        synchronize(device)
        began = time.perf_counter()
        samples = list(generate(pipe, arm.job(batch)))
        synchronize(device)
        seconds = time.perf_counter() - began
        report = acceleration.report() if acceleration is not None else None
    return Turn(
        arm, number, tuple(replace(sample, index=start + sample.index) for sample in samples), seconds, report
    )


def warm_up(
    pipe: Pipeline,
    arms: Sequence[Arm],
    job: Job,
    rounds: int = ROUNDS,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> Timings:
    """Time every arm in turns, after one round that pays for allocation and compilation.

    On the first batch, or on prompts from all of the list where an arm's time depends on them. What attaching takes is
    left out, as in the comparison itself. ``tell`` is called with the number of calls done, and of all of them.
    """
    from hasten.eval.efficiency.timing import interleave

    varies = any(arm.varies_by_prompt for arm in arms)
    typical = replace(job, prompts=_spread(job.prompts) if varies else job.prompts[: job.batch_size])
    done = itertools.count(1)

    def timed(arm: Arm) -> Turn:
        turn = _turn(pipe, arm, typical, 0, 0)
        tell(next(done), (1 + rounds) * len(arms))
        return turn

    tasks = {arm.name: partial(timed, arm) for arm in arms}
    device = getattr(pipe, "device", None)
    return interleave(tasks, rounds, device=device, seconds_of=attrgetter("seconds"))


def equal_time_steps(steps: int, pace: Timings, plain: str = BASELINE) -> dict[str, int]:
    """Row -> steps that plain sampling gets done in its time.

    Args:
        steps: of the row ``plain``.
        pace: of :func:`warm_up`.
        plain: a row without techniques.
    """
    return {
        name: max(1, round(steps * pace.ratio(name, plain).value)) for name in pace.seconds if name != plain
    }


def profile(pipe: Pipeline, arm: Arm, job: Job) -> dict[str, Any]:
    """Peak memory and seconds per stage of the first batch, in a run of its own: looking slows it down."""
    from hasten.eval.efficiency import peak_memory, timed_stages

    device = getattr(pipe, "device", None)
    first = replace(job, prompts=job.prompts[: job.batch_size])
    with peak_memory(device) as peak, timed_stages(pipe, device) as clock:
        total = _turn(pipe, arm, first, 0, 0).seconds
    stages = {**clock.seconds, "rest": max(0.0, total - sum(clock.seconds.values()))}
    return {"memory": {**asdict(peak), "above_start": peak.above_start}, "stages": stages}


def flops_of(pipe: Pipeline, arm: Arm, job: Job) -> int:
    """Floating-point operations of the first prompt, or the mean over the list where they depend on the prompt."""
    from hasten.eval.efficiency import count_flops

    prompts = _spread(job.prompts) if arm.varies_by_prompt else job.prompts[:1]
    counted = arm.job(replace(job, prompts=prompts))
    with arm.attached(pipe):
        return round(count_flops(lambda: list(generate(pipe, counted))) / len(prompts))


def _spread(prompts: Sequence[str]) -> tuple[str, ...]:
    """At most :data:`_TYPICAL` prompts, evenly spaced over the list."""
    count = min(_TYPICAL, len(prompts))
    return tuple(prompts[i * len(prompts) // count] for i in range(count))
