"""Runs an accelerated pipeline: installs the seams around one call and takes them off again, whatever happens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from hasten._adapters.base import Guidance, LatentLayout, Moments
from hasten._attention import AttentionSeam, refuse_compiled
from hasten._clock import Clock, expected_batch
from hasten._control import ControlSeam
from hasten._culprit import Faults
from hasten._denoiser import DenoiserSeam
from hasten._errors import HastenError, UnsupportedError
from hasten._estimate import Estimate, estimate, forecasts
from hasten._gate import Forward, open_gates
from hasten._handlers import guarded
from hasten._journal import Journal
from hasten._numerics import Watch
from hasten._outside import outside
from hasten._pipeline import Pipeline
from hasten._plugins import host
from hasten._recorder import Recorder, Row
from hasten._report import Report, StepRecord
from hasten._run import Run, RunCall
from hasten._seams import SeamTable, submodule
from hasten._step_caches import refuse_step_caches
from hasten._subclass import stock_class
from hasten._swap import swapped
from hasten._target import Target
from hasten._technique import Forecast, StepForecast
from hasten._timesteps import nothing_to_run
from hasten._timings import remember
from hasten._turns import Turns
from hasten._unverified import SelfCheck

if TYPE_CHECKING:
    from hasten._enabled import Enabled
    from hasten._plan import PlannedTechnique

__all__ = ["Attachment"]


class Attachment:
    """What stands behind an accelerated pipeline: its seams, its structural edits, and the last report.

    Args:
        target: the pipeline.
        planned: every technique with its options and claims, outermost first.
        techniques: the same, as they are called.
    """

    def __init__(
        self, target: Target, planned: Sequence[PlannedTechnique], techniques: Sequence[Enabled]
    ) -> None:
        self.target = target
        self.names = names = tuple(technique.name for technique in planned)
        self._planned = {technique.name: technique for technique in planned}
        self._techniques = {technique.name: technique for technique in techniques}
        self._culprits = {technique.name: technique.culprit for technique in techniques}
        self.table = SeamTable(names)
        self.journal = Journal()
        self._turns = Turns(target.name)
        self._before: Mapping[str, Any] | None = None
        self.paused = 0
        """How many ``paused()`` blocks are open."""
        self.report = Report(target.name, names)
        self._forecast_of: tuple[Any, ...] | None = None
        self._steps: tuple[StepForecast, ...] = ()
        """Those of the last call, as they were forecast."""

    def call(self, pipe: Pipeline, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``pipe(*args, **kwargs)``, accelerated.

        Raises:
            ConflictError: another thread is calling this pipeline.
        """
        stock = stock_class(pipe).__call__
        if self.paused or pipe is not self.target.pipe:
            with self._turns.taken(stock=True):
                return stock(pipe, *args, **kwargs)
        try:
            arguments = self.target.bind(args, kwargs)
        except TypeError:
            return stock(pipe, *args, **kwargs)  # the pipeline has its own words for a wrong argument
        table = guarded(self.table, self._culprits, faults := Faults())
        with self._session(faults) as recorder:
            self._check()

            def once(call: RunCall) -> Any:
                call = _with_cache(table, self._rewrite_prompt(table, call))
                with self._installed(table, call, recorder):
                    return stock(pipe, **outside(call.arguments))

            proceed: Callable[[RunCall], Any] = once
            for _, handler in reversed(table.run.items):
                proceed = _around(handler, proceed)
            options = {name: self._planned[name].options for name in self.names}
            result = proceed(RunCall(pipe, self.target, arguments, options=options))
        self._remember(arguments)
        return result

    def estimate(self, arguments: Mapping[str, Any]) -> Estimate | None:
        """What a call with these arguments will cost with the techniques that are attached now."""
        return estimate(self.target, arguments, *self._forecasts(arguments))

    def _forecasts(self, arguments: Mapping[str, Any]) -> tuple[Forecast | None, dict[str, Forecast | None]]:
        live = [(self._techniques[name], self._planned[name].claims) for name in self.names]
        return forecasts(self.target, live, arguments)

    def _remember(self, arguments: Mapping[str, Any]) -> None:
        """Keep the times of the last call for later plans, if it went as it was forecast."""
        pictures = expected_batch(arguments) or 1
        numbers = {name: value for name, value in arguments.items() if isinstance(value, (int, float))}
        if (key := (self.names, pictures, numbers)) != self._forecast_of:
            self._forecast_of, self._steps = key, self._expected(arguments)
        if self._steps:
            remember(self.target, self._steps, pictures, self.report)

    def _expected(self, arguments: Mapping[str, Any]) -> tuple[StepForecast, ...]:
        """Steps of a call as they are forecast, none where a technique predicts nothing or cannot any more."""
        try:
            plain, found = self._forecasts(arguments)
        except HastenError:
            return ()
        latest = [plain, *found.values()]
        return () if None in latest else latest[-1].steps  # type: ignore[union-attr]

    def attributes(self, pipe: Pipeline) -> Mapping[str, Any]:
        """The pipeline's attributes, without what a call in progress swapped."""
        before = self._before
        return vars(pipe) if before is None or pipe is not self.target.pipe else before

    @contextmanager
    def custom_run(self, arguments: Mapping[str, Any]) -> Iterator[Run]:
        """The seams around a loop of the user's own.

        Raises:
            UnsupportedError: a technique works on whole pipeline calls, which a loop is not.
        """
        table = guarded(self.table, self._culprits, faults := Faults())
        whole = dict.fromkeys(owner for owner, _ in (*table.run.items, *table.prompt.items))
        if whole:
            raise UnsupportedError(
                f"{', '.join(whole)} changes whole pipeline calls and cannot work in a custom denoising "
                f"loop; call the pipeline, or remove the technique with accel.remove(...)"
            )
        call = RunCall(self.target.pipe, self.target, self.target.call_arguments(**arguments))
        with self._session(faults) as recorder:
            self._check()
            call = _with_cache(table, call)
            with self._installed(table, call, recorder) as run:
                yield run

    def _check(self) -> None:
        """What the plan made sure of and the user may have changed since.

        Raises:
            ConflictError: a cache was enabled that a technique cannot work beside.
        """
        refuse_step_caches(self.target, {name: self._planned[name].claims for name in self.names})

    @contextmanager
    def _session(self, faults: Faults) -> Iterator[Recorder]:
        """One call of the user: collects rows over all of its runs, and ends in one report."""
        with self._turns.taken(), self._remembered(), self._reported() as recorder, faults.named():
            yield recorder

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        """Attributes of the pipeline as they are before the first of nested calls swaps any."""
        outermost = self._before is None
        if outermost:
            self._before = dict(vars(self.target.pipe))
        try:
            yield
        finally:
            if outermost:
                self._before = None

    @contextmanager
    def _reported(self) -> Iterator[Recorder]:
        recorder = Recorder()
        error: str | None = None
        try:
            yield recorder
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"
            raise
        finally:
            self.report = self._make_report(recorder, error)
            host().run_finished(self.report)

    @contextmanager
    def _installed(self, table: SeamTable, call: RunCall, recorder: Recorder) -> Iterator[Run]:
        """The seams of one run, installed on entry, and removed on exit where they are still ours."""
        layout: Moments | None = self.target.adapter.capability(Moments)
        self._refuse_oversize(call)
        with ExitStack() as stack:
            stack.enter_context(_swapped_scheduler(table, call))
            run = Run(call, _make_clock(layout, call), recorder)
            stack.callback(run.close)
            if layout is None:
                yield run
                return
            inside = (*table.denoiser.items, *table.modules.items, *table.attention.items)
            hidden = (*table.attention.items, *table.modules.items)
            watch = Watch([owner for owner, _ in hidden]) if inside else None
            attention = AttentionSeam(self.target, table.attention.items) if table.attention.items else None
            check = () if self.target.verified else (("hasten", SelfCheck(self.target)),)
            seams = {}
            for name, module in self.target.denoisers.items():
                around = {} if attention is None else {"around": attention.active}
                seams[module] = DenoiserSeam(
                    name, module, run, layout, (*check, *table.denoiser.items), watch, **around
                )
            if attention is not None:
                stack.enter_context(attention.installed())
            forwards: dict[Any, Forward] = {module: seam.forward for module, seam in seams.items()}
            forwards.update(_control_forwards(table, self.target, run))
            try:
                with open_gates({**_module_handlers(table, self.target), **forwards}):
                    yield run
            finally:
                idle = self._note_idle(call, seams, recorder)
            if watch is not None and not idle:
                watch.settle()
                self._check_used(table, seams)
            if attention is not None:
                attention.check_complete([seam.name for seam in seams.values() if seam.computed])

    def _refuse_oversize(self, call: RunCall) -> None:
        """Before anything is computed; the pipeline itself would find out in its first step.

        Raises:
            UnsupportedError: the model has no positions for this size.
        """
        layout = self.target.adapter.capability(LatentLayout)
        problem = None if layout is None else layout.oversize(self.target.pipe, call.arguments)
        if problem is not None and nothing_to_run(self.target, call.arguments) is None:
            raise UnsupportedError(problem)

    def _note_idle(self, call: RunCall, seams: Mapping[Any, DenoiserSeam], recorder: Recorder) -> bool:
        """Whether the call had no step to run: it then returns, or raises, what it does without hasten."""
        layout = self.target.adapter.capability(LatentLayout)
        if layout is None or any(seam.forwards for seam in seams.values()):
            return False
        reason = nothing_to_run(self.target, call.arguments)
        if reason is not None:
            recorder.notes.append(f"{reason}: no technique was used")
        return reason is not None

    def _check_used(self, table: SeamTable, seams: Mapping[Any, DenoiserSeam]) -> None:
        if any(seam.forwards for seam in seams.values()):
            return
        inside = (*table.denoiser.items, *table.modules.items, *table.attention.items)
        owners = ", ".join(dict.fromkeys(owner for owner, _ in inside))
        names = ", ".join(seam.name for seam in seams.values()) or "(none)"
        raise UnsupportedError(
            f"no forward of {names} passed through hasten in this run, so {owners} had no effect. "
            f"{self.target.name} may call another module, or its 'forward' method directly; name the module it calls "
            f"in the 'denoisers' of the adapter of family {self.target.adapter.family!r}."
        )

    def _rewrite_prompt(self, table: SeamTable, call: RunCall) -> RunCall:
        for owner, handler in table.prompt.items:
            prompt = call.arguments.get("prompt")
            texts = (prompt,) if isinstance(prompt, str) else tuple(prompt or ())
            answer = handler(texts, call)
            if answer is None:
                continue
            if len(answer) != len(texts):
                raise UnsupportedError(
                    f"{owner!r} turned {len(texts)} prompts into {len(answer)}; return the same number of prompts"
                )
            if texts:
                call = call.replace_arguments(
                    {"prompt": answer[0] if isinstance(prompt, str) else list(answer)}
                )
        return call

    def _make_report(self, recorder: Recorder, error: str | None) -> Report:
        events = any(row.stopwatch is not None and row.stopwatch.on_device for row in recorder.rows)
        steps = tuple(_step_record(row, self._facts(row)) for row in recorder.rows)
        return Report(
            pipeline=self.target.name,
            techniques=self.names,
            notes=(*recorder.notes, *(self._reviewed(steps) if steps and error is None else ())),
            steps=steps,
            seconds=time.perf_counter() - recorder.start,
            timing="cuda events" if events else "host clock",
            error=error,
        )

    def _facts(self, row: Row) -> dict[str, dict[str, Any]]:
        """What techniques recorded of a forward. One that fails to tell costs a warning, not the user's image."""
        found = {owner: dict(facts) for owner, facts in row.facts.items()}
        for owner, later in row.later:
            try:
                with self._culprits[owner].during("record_later"):
                    found.setdefault(owner, {}).update(later())
            except HastenError as error:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        return found

    def _reviewed(self, steps: Sequence[StepRecord]) -> Iterator[str]:
        """What the techniques say of a run. One that fails there costs a warning, not the user's image."""
        for name in self.names:
            try:
                yield from [f"{name}: {note}" for note in self._techniques[name].review(steps)]
            except HastenError as error:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def _around(handler: Callable[..., Any], inner: Callable[[RunCall], Any]) -> Callable[[RunCall], Any]:
    return lambda call: handler(call, inner)


def _control_forwards(table: SeamTable, target: Target, run: Run) -> dict[Any, Forward]:
    """Handlers of the pipeline's control network, if there is one now."""
    if not table.control.items or (found := target.control_network) is None:
        return {}
    network, module = found
    layout: Any = target.layout
    return {module: ControlSeam(network, module, run, layout, table.control.items).forward}


def _module_handlers(table: SeamTable, target: Target) -> dict[Any, Forward]:
    """Handlers of modules inside the denoisers; where several techniques have one, the first listed is outermost."""
    if table.modules.items:
        refuse_compiled(target)  # again: it may have been compiled since the techniques were attached
    handlers: dict[Any, Forward] = {}
    for _, entry in reversed(table.modules.items):
        module = submodule(target, entry.name)
        handlers[module] = _before(entry.handler, handlers.get(module))
    return handlers


def _before(outer: Forward, inner: Forward | None) -> Forward:
    if inner is None:
        return outer
    return lambda module, args, kwargs: outer(lambda *a, **k: inner(module, a, k), args, kwargs)


def _with_cache(table: SeamTable, call: RunCall) -> RunCall:
    """The call with the techniques' key-value cache."""
    for _, factory in table.cache.items:
        call = call.replace_arguments({"kv_cache": factory(call.arguments.get("kv_cache"), call)})
    return call


def _make_clock(layout: Moments | None, call: RunCall) -> Clock:
    guidance = Guidance.EMBEDDED if layout is None else layout.guidance
    doubled = bool(getattr(call.pipe, "do_classifier_free_guidance", False))
    return Clock(guidance, expected_batch(call.arguments), doubled)


@contextmanager
def _swapped_scheduler(table: SeamTable, call: RunCall) -> Iterator[None]:
    """The pipeline with the techniques' scheduler."""
    if not table.scheduler.items:
        yield
        return
    scheduler = vars(call.pipe)["scheduler"]
    for _, factory in table.scheduler.items:
        scheduler = factory(scheduler, call)
    with swapped(call.pipe, "scheduler", scheduler):
        yield


def _step_record(row: Row, facts: Mapping[str, Mapping[str, Any]]) -> StepRecord:
    size = row.step.size
    spatial = (size.height, size.width)
    return StepRecord(
        run=row.run,
        index=row.step.index,
        level=row.step.noise.time,
        denoiser=row.denoiser,
        branch=row.step.branch,
        size=spatial if size.frames is None else (size.frames, *spatial),
        resolution=row.resolution,
        milliseconds=row.stopwatch.milliseconds() if row.stopwatch else 0.0,
        facts=facts,
    )
