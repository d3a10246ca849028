"""The contract of techniques."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import hasten
from hasten._claims import Access, Claim
from hasten._fingerprint import fingerprint
from hasten._options import options_of
from hasten._target import Target
from hasten._technique import Technique
from hasten._tunable import tunable_options
from hasten.extend import Pipeline
from hasten.testing._pipelines import PipelineContract
from hasten.testing._registered import known_technique

__all__ = ["TechniqueContract"]


class TechniqueContract(PipelineContract):
    """Contract tests of a technique.

    Attributes:
        technique: the class; it need not be installed.
        active: options under which it changes the output of :meth:`call`.
        exact: options under which it changes nothing; ``None`` if there are none.
        resized: arguments of a call of another size; ``None`` if the pipeline has one size.
        tolerance: largest absolute difference of the exact setting from the stock pipeline.
    """

    technique: ClassVar[type[Technique[Any]]]
    active: ClassVar[Mapping[str, Any]] = {}
    exact: ClassVar[Mapping[str, Any] | None] = None
    resized: ClassVar[Mapping[str, Any] | None] = None
    tolerance: ClassVar[float] = 0.0

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        with known_technique(self.technique):
            yield

    def accelerate(self, pipe: Any, options: Mapping[str, Any]) -> hasten.Acceleration:
        """Attach the technique alone."""
        return hasten.accelerate(pipe, {self.technique.name: dict(options)})

    def test_configurations_survive_json(self) -> None:
        """A configuration written to a file and read back is the same."""
        for options in (self.active, self.exact or {}):
            config = options_of(self.technique.config_class).validate(options)
            assert type(config).model_validate_json(config.model_dump_json()) == config

    def test_every_option_is_described(self) -> None:
        """Every option has a description for ``hasten plugins NAME``."""
        kinds = options_of(self.technique.config_class).kinds
        fields = [item for kind in kinds for item in kind.model_fields.items()]
        bare = [name for name, field in fields if not (field.description or "").strip()]
        assert not bare, f"options without a description: {bare}"

    def test_what_is_worth_trying_is_valid(self) -> None:
        """Each value that an option declares for ``hasten tune`` is valid together with the active options."""
        kind = self.technique.config_class
        for name, tunable in tunable_options(kind).items():
            for value in tunable.values(5):
                options_of(kind).validate({**self.active, name: value})

    def test_unknown_options_are_refused(self) -> None:
        """A misspelt option is an error."""
        with pytest.raises(hasten.ConfigError, match="no_such_option"):
            hasten.plan(self.pipeline(), {self.technique.name: {"no_such_option": 1}})

    def test_planning_touches_nothing(self) -> None:
        """``plan`` and the checks read the pipeline only."""
        pipe, control = self.pipeline(), self.pipeline()
        hasten.plan(pipe, {self.technique.name: dict(self.active)})
        _assert_same_structure(pipe, control)

    def test_the_plan_agrees_with_the_call(self) -> None:
        """A planned call runs, and the denoiser computes at the forecast sizes only."""
        pipe = self.pipeline()
        accepted = {name: self.arguments[name] for name in _FORECAST & self.arguments.keys()}
        plan = hasten.plan(pipe, {self.technique.name: dict(self.active)}, **accepted)
        with self.accelerate(pipe, self.active) as accel:
            self.call(pipe)
            seen = {step.resolution[-2:] for step in accel.report().steps if step.resolution is not None}
        forecast = plan.techniques[0].forecast
        if forecast is not None and forecast.steps:
            assert {step.size for step in forecast.steps} == seen

    def test_it_acts(self) -> None:
        """The active options change the output, and the report says that the technique was on."""
        pipe = self.pipeline()
        stock = self.call(pipe)
        with self.accelerate(pipe, self.active) as accel:
            assert not torch.equal(self.call(pipe), stock)
            assert accel.report().techniques == (self.technique.name,)

    def test_claims_cover_what_it_registers(self) -> None:
        """Seams in use, structural edits and changes of size are claimed."""
        pipe = self.pipeline()
        with self.accelerate(pipe, self.active) as accel:
            claims = accel.plan.techniques[0].claims
            self.call(pipe)
            resized = any(step.resolution not in (None, step.size) for step in accel.report().steps)
            missing = [why for why, slots in _evidence(accel, resized) if not _claimed(claims, slots)]
        assert not missing, f"no claim covers: {missing}"

    def test_restoring_leaves_nothing(self) -> None:
        """``restore`` returns the pipeline to its state, and its output is bit-identical."""
        pipe, control = self.pipeline(), self.pipeline()
        stock = self.call(control)
        self.call(pipe)  # a stock call leaves traces of its own
        accel = self.accelerate(pipe, self.active)
        self.call(pipe)
        accel.restore()
        accel.restore()
        _assert_same_structure(pipe, control)
        assert torch.equal(self.call(pipe), stock)

    def test_the_exact_setting_is_stock(self) -> None:
        """The exact options give the stock output."""
        if self.exact is None:
            pytest.skip("the technique has no exact setting")
        pipe = self.pipeline()
        stock = self.call(pipe)
        with self.accelerate(pipe, self.exact):
            torch.testing.assert_close(self.call(pipe), stock, rtol=0, atol=self.tolerance)

    def test_another_size_works(self) -> None:
        """Two consecutive calls of different sizes do not affect each other."""
        if self.resized is None:
            pytest.skip("no other size is given")
        pipe = self.pipeline()
        with self.accelerate(pipe, self.active):
            first = self.call(pipe)
            assert self.call(pipe, **self.resized).isfinite().all()
            assert torch.equal(self.call(pipe), first)

    def test_a_failed_call_leaves_nothing(self) -> None:
        """An exception in the middle of a run reaches the caller; the next call is clean."""
        pipe = self.pipeline()
        with self.accelerate(pipe, self.active):
            expected = self.call(pipe)
            with _failing(pipe), pytest.raises(_Interruption):
                self.call(pipe)
            assert torch.equal(self.call(pipe), expected)

    def test_two_pipelines_at_once(self) -> None:
        """Accelerated pipelines in two threads give the same output as alone."""
        pipes = [self.pipeline(), self.pipeline()]
        accelerations = [self.accelerate(pipe, self.active) for pipe in pipes]
        expected = self.call(pipes[0])
        outputs: dict[int, Tensor] = {}

        def run(number: int) -> None:
            outputs[number] = self.call(pipes[number])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for acceleration in accelerations:
            acceleration.restore()
        assert sorted(outputs) == [0, 1]
        for output in outputs.values():
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


_FORECAST = frozenset({"num_inference_steps", "height", "width", "num_frames", "guidance_scale"})
"""Arguments of a call that decide what is forecast."""


class _Interruption(Exception):
    """What a failing denoiser raises."""


@contextmanager
def _failing(pipe: Pipeline) -> Iterator[None]:
    """The second forward of a denoiser raises."""
    count = 0

    def fail(module: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG001
        nonlocal count
        count += 1
        if count == 2:
            raise _Interruption

    denoisers = Target.of(pipe).denoisers.values()
    handles = [module.register_forward_pre_hook(fail, with_kwargs=True) for module in denoisers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _assert_same_structure(pipe: Pipeline, control: Any) -> None:
    difference = fingerprint(control).diff(fingerprint(pipe))
    assert not difference, f"the pipeline was not restored:\n{difference}"


def _evidence(accel: hasten.Acceleration, resized: bool) -> list[tuple[str, tuple[str, ...]]]:
    """What was seen of the technique, and the slots of which it has to claim one."""
    kinds = {patch.split(":")[0] for patch in accel.plan.patches}
    found: list[tuple[str, tuple[str, ...]]] = []
    if "attention" in kinds:
        found.append(("it intercepts attention", ("attention.self", "attention.kv")))
    if "cache" in kinds:
        found.append(("it replaces the key-value cache", ("attention.kv",)))
    if resized:
        found.append(("it computes at another size", ("tokens.shape", "ranks.frames")))
    return found


def _claimed(claims: tuple[Claim, ...], slots: tuple[str, ...]) -> bool:
    return any(claim.slot in slots and claim.access is not Access.READS for claim in claims) or any(
        claim.slot in slots and claim.slot.startswith("attention.") for claim in claims
    )
