"""One run of the pipeline's loop: its arguments, its clock, and the state and report values of techniques."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hasten._clock import Clock, Step
from hasten._errors import HastenError, UnsupportedError
from hasten._pipeline import Pipeline
from hasten._ranks import SINGLE, Ranks

if TYPE_CHECKING:
    from hasten._adapters.base import LatentSize
    from hasten._recorder import Recorder, Row
    from hasten._target import Target
    from hasten.schedules.noise import NoiseLevel

__all__ = ["Run", "RunCall"]


@dataclass(frozen=True)
class RunCall:
    """Pipeline call, as passed to a run handler.

    Args:
        pipe: the user's pipeline. target: the pipeline with its adapter.
        arguments: every argument of the call by name, defaults filled in.
        ranks: the processes that compute this call together.
        options: JSON values of the options of every attached technique, by name.
    """

    pipe: Pipeline
    target: Target
    arguments: Mapping[str, Any]
    ranks: Ranks = SINGLE
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def replace_arguments(self, changes: Mapping[str, Any]) -> RunCall:
        """This call with some arguments replaced."""
        return replace(self, arguments={**self.arguments, **changes})

    def on_ranks(self, ranks: Ranks) -> RunCall:
        """This call, divided over the processes of ``ranks``."""
        return replace(self, ranks=ranks)


class Run:
    """One pass through the pipeline's loop. A run handler that proceeds several times starts several runs."""

    def __init__(self, call: RunCall, clock: Clock, recorder: Recorder) -> None:
        self.pipe = call.pipe
        self.target = call.target
        self.arguments = call.arguments
        self.ranks = call.ranks
        self._clock = clock
        self._recorder = recorder
        self._states: dict[str, dict[Any, Any]] = {}
        self._step: Step | None = None
        self._row: Row | None = None
        self._times: tuple[float, ...] | None = None
        self.control_size: LatentSize | None = None
        """Extent of the latents that the latest control features were computed from; ``None`` for the solver's."""
        recorder.begin_run()

    @property
    def step(self) -> Step:
        """The step in progress.

        Raises:
            HastenError: no denoiser forward has begun yet.
        """
        if self._step is None:
            raise HastenError("the run has no step yet: its first denoiser forward has not started")
        return self._step

    @property
    def is_last_step(self) -> bool:
        """Whether the step in progress is the run's last one, by the timesteps its scheduler is set to.

        With a second-order solver, the step has two forwards. ``False`` if the scheduler does not provide this.
        """
        return self.is_last_level(self.step.noise)

    def is_last_level(self, noise: NoiseLevel) -> bool:
        """Whether ``noise`` is the level of the run's last step, see :attr:`is_last_step`."""
        if self._times is None:
            self._times = self._planned_times()
        return (
            bool(self._times) and min(self._times, key=lambda time: abs(time - noise.time)) == self._times[-1]
        )

    def _planned_times(self) -> tuple[float, ...]:
        from hasten._timesteps import run_levels

        try:
            return tuple(level.time for level in run_levels(self.target, self.arguments, self.pipe.scheduler))
        except UnsupportedError:
            return ()

    def state(self, owner: str) -> dict[Any, Any]:
        """State of the technique ``owner``. Cleared when the noise level rises, deleted when the run ends."""
        return self._states.setdefault(owner, {})

    def record(self, owner: str, **facts: Any) -> None:
        """Add values to the current forward's row of the report (JSON values; tensors are not kept).

        Raises:
            HastenError: no denoiser forward has begun yet.
        """
        if self._row is None:
            raise HastenError(f"{owner!r} cannot record {sorted(facts)}: the run has no step yet")
        self._row.facts.setdefault(owner, {}).update(facts)

    def record_later(self, owner: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Add the result of ``facts``, called after the pipeline call, so that no forward waits for the device.

        Raises:
            HastenError: no denoiser forward has begun yet.
        """
        if self._row is None:
            raise HastenError(f"{owner!r} cannot record facts: the run has no step yet")
        self._row.later.append((owner, facts))

    def advance(self, denoiser: str, step_of: Mapping[str, Any]) -> tuple[Step, Row]:
        """Begin a denoiser forward (called by the host). ``step_of``: the arguments of :meth:`Clock.tick`."""
        restarts = self._clock.restarts
        step = self._clock.tick(**step_of)
        if self._clock.restarts != restarts:
            self._states.clear()
            self._recorder.begin_run()
        self._step = step
        self._row = self._recorder.begin_row(denoiser, step)
        return step, self._row

    def close(self) -> None:
        """Forget everything (called by the host at the end of the run)."""
        self._states.clear()
        self._step = self._row = None
