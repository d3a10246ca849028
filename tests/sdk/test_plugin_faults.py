"""Whatever a third party's technique raises or returns has its name on it, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline

import hasten
from hasten import PluginError, _plugins
from hasten._enabled import Enabled
from hasten._fingerprint import fingerprint

from .test_plugins import distribution

NAME = r"plugin faulty_plugin \(faulty-dist 1\.2\): technique 'faulty'"
RAISES = ("exception", "exit", "cancelled")
RETURNS = ("none", "object", "objects", "generator")
PLACES = {
    "__new__": "__new__",
    "__init__": "__init__",
    "claims": "claims",
    "check": "check",
    "check_call": "check_call",
    "forecast": "forecast",
    "attach": "attach",
    "wrapper": r"its wrapper of \w+\.enable_gradient_checkpointing",
    "run": "its run handler",
    "prompt": "its prompt handler",
    "scheduler": "its scheduler factory",
    "denoiser": "its denoiser handler",
    "attention": "its attention handler",
    "module": r"its handler of module transformer\.transformer_blocks\.0",
}
SHAPE = r"tensor of .* from its denoiser handler at step 0 of transformer; expected \(1, "
FLOATING = r"expected a floating-point tensor of shape \(1, "
IN_A_RUN = {"run", "prompt", "scheduler", "denoiser", "attention", "module"}
SPECIAL = {("__new__", True): "failed in __init__", ("__init__", False): "has no config or no name"}
RIGHT = {("forecast", "none"), ("attach", "none"), ("prompt", "none")}
FAULTS = [(place, fault) for place in PLACES for fault in (*RAISES, *RETURNS) if (place, fault) not in RIGHT]


@pytest.fixture(scope="module", autouse=True)
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The plugin as an installed distribution, loaded by a host of its own."""
    folder = tmp_path_factory.mktemp("site")
    distribution(folder, "faulty-dist", "faulty_plugin", "")
    shutil.copy(Path(__file__).with_name("faulty_plugin.py"), folder / "faulty_plugin.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(_plugins, "_host", _plugins.Host())
        yield importlib.import_module("faulty_plugin")
    del sys.modules["faulty_plugin"]


@pytest.fixture(scope="module")
def shared() -> Any:
    return FAMILIES["flux"]()


def one_step(pipe: Any, **changes: Any) -> torch.Tensor:
    return baseline(pipe, "flux", **{"num_inference_steps": 1, **changes})


@pytest.fixture(scope="module")
def stock(shared: Any) -> torch.Tensor:
    """What the pipeline gives; whoever compares with it may expect the traces of this call too."""
    return one_step(shared)


def accelerated_step(pipe: Any, config: dict[str, Any]) -> None:
    with hasten.accelerate(pipe, config):
        one_step(pipe)


@pytest.mark.parametrize(("place", "fault"), FAULTS)
def test_a_fault_is_named_and_leaves_nothing_behind(
    place: str, fault: str, shared: Any, stock: torch.Tensor, third_party: Any
) -> None:
    before = fingerprint(shared)
    config = {"scale": {"factor": 0.5}, "faulty": {"place": place, "fault": fault}}
    verb = f"failed in {PLACES[place]}" if fault in RAISES else f"returned .* from {PLACES[place]}"
    if (place, fault in RAISES) in SPECIAL:
        verb = SPECIAL[place, fault in RAISES]
    with pytest.raises(PluginError, match=f"^{NAME} {verb}") as caught:
        accelerated_step(shared, config)
    if fault in RAISES:
        assert type(caught.value.__cause__) is third_party.RAISES[fault]
        assert "faulty_plugin.py:" in str(caught.value)
    if place in IN_A_RUN:  # a call that fails leaves traces of diffusers itself, which the next one removes
        assert torch.equal(one_step(shared), stock)
    assert not before.diff(fingerprint(shared))


@pytest.mark.parametrize("fault", [*RAISES, *RETURNS])
def test_a_review_that_fails_costs_a_warning(fault: str, shared: Any, stock: torch.Tensor) -> None:
    verb = "failed in" if fault in RAISES else "returned .* from"
    with (
        hasten.accelerate(shared, {"faulty": {"place": "review", "fault": fault}}),
        pytest.warns(RuntimeWarning, match=f"^{NAME} {verb} review"),
    ):
        assert torch.equal(one_step(shared), stock)


@pytest.mark.parametrize("fault", [*RAISES, *RETURNS])
def test_a_number_of_processes_that_is_none_is_a_fault(fault: str, third_party: Any) -> None:
    technique = Enabled("faulty", third_party.FaultyConfig(place="ranks_per_call", fault=fault))
    verb = "failed in" if fault in RAISES else "returned .* from"
    with pytest.raises(PluginError, match=f"^{NAME} {verb} ranks_per_call"):
        technique.ranks_per_call(2)


def test_the_test_covers_every_method_and_every_seam(third_party: Any) -> None:
    from hasten._seams import SeamTable

    methods = {name for name, value in vars(hasten.Technique).items() if inspect.isfunction(value)}
    assert methods <= {*PLACES, "review", "ranks_per_call"}
    seams = {*SeamTable.kinds()} - {"modules", "cache", "control"} | {"module"}
    assert seams <= {*PLACES}


def test_the_others_are_unaffected(shared: Any, stock: torch.Tensor) -> None:
    with hasten.accelerate(shared, {"scale": {"factor": 0.5}}):
        alone = one_step(shared)
    with pytest.raises(PluginError):
        hasten.accelerate(shared, {"scale": {}, "faulty": {"place": "attach", "fault": "exit"}})
    with hasten.accelerate(shared, {"scale": {"factor": 0.5}, "faulty": {}}) as accel:
        assert torch.equal(one_step(shared), alone)
        accel.remove("faulty")
        assert torch.equal(one_step(shared), alone)
    assert torch.equal(one_step(shared), stock)


@pytest.mark.parametrize("place", ["run", "denoiser", "attention", "module", "scheduler"])
def test_the_same_acceleration_goes_on_after_a_fault(place: str, shared: Any, stock: torch.Tensor) -> None:
    with hasten.accelerate(shared, {"faulty": {"place": place, "fault": "exception"}, "scale": {}}) as accel:
        for _ in range(2):
            with pytest.raises(PluginError, match=NAME):
                one_step(shared)
            assert accel.report().error.startswith("PluginError: plugin faulty_plugin")
            assert "_compiled_call_impl" not in vars(shared.transformer)
        with accel.paused():
            assert torch.equal(one_step(shared), stock)


def technique(**handlers: Any) -> type[hasten.Technique[Any]]:
    """A technique with these handlers on seams."""

    class Made(hasten.Technique[Any]):
        name = "made"
        summary = "made for one test"
        config_class = hasten.TechniqueConfig

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            for seam, handler in handlers.items():
                getattr(seams, seam)(handler)

    return Made


def passing(call: Any, proceed: Any) -> Any:
    return proceed(call)


@pytest.mark.parametrize("seam", ["run", "denoiser", "attention"])
@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()], ids=repr
)
def test_errors_of_the_pipeline_and_of_callbacks_stay_what_they_are(
    seam: str, error: BaseException, shared: Any, register: Any, stock: torch.Tensor
) -> None:
    """They pass through the handlers, which were only waiting."""
    register(technique(**{seam: passing}))
    before = fingerprint(shared)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with hasten.accelerate(shared, ["made"]):
        with pytest.raises(type(error)) as caught:
            one_step(shared, callback_on_step_end=fail)
        assert caught.value is error
        hook = shared.transformer.proj_out.register_forward_hook(fail)
        with pytest.raises(type(error)) as caught:
            one_step(shared)
        hook.remove()
        assert caught.value is error
        assert torch.equal(one_step(shared), stock)
    assert not before.diff(fingerprint(shared))


@pytest.mark.parametrize("seam", ["run", "denoiser", "attention", "scheduler", "prompt"])
def test_an_interrupt_interrupts(seam: str, shared: Any, register: Any, stock: torch.Tensor) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    register(technique(**{seam: interrupt}))
    with hasten.accelerate(shared, ["made"]), pytest.raises(KeyboardInterrupt):
        one_step(shared)
    assert torch.equal(one_step(shared), stock)


def test_exhausted_memory_stays_what_it_is(shared: Any, register: Any) -> None:
    """Programs catch it and try a smaller batch; the technique is not at fault."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def exhaust(call: Any, proceed: Any) -> Any:
        raise error

    register(technique(denoiser=exhaust))
    with hasten.accelerate(shared, ["made"]), pytest.raises(torch.OutOfMemoryError) as caught:
        one_step(shared)
    assert caught.value is error


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
def test_a_signal_handler_may_end_the_program_inside_of_a_handler(shared: Any, register: Any) -> None:
    def told_to_end(*_: Any) -> None:
        sys.exit(143)

    def slow(call: Any, proceed: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return proceed(call)

    register(technique(denoiser=slow))
    previous = signal.signal(signal.SIGUSR1, told_to_end)
    try:
        with hasten.accelerate(shared, ["made"]), pytest.raises(SystemExit) as caught:
            one_step(shared)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert caught.value.code == 143


@pytest.mark.parametrize("seam", ["run", "denoiser", "attention"])
def test_proceed_takes_the_call(seam: str, shared: Any, register: Any) -> None:
    register(technique(**{seam: lambda call, proceed: proceed({"steps": 3})}))
    message = r"extra: technique 'made' called proceed\(dict\) in its .* handler.*; call proceed\(call\)"
    with hasten.accelerate(shared, ["made"]), pytest.raises(PluginError, match=message):
        one_step(shared)


def test_a_handler_that_takes_other_arguments_is_named(shared: Any, register: Any) -> None:
    register(technique(denoiser=lambda call: call))
    with (
        hasten.accelerate(shared, ["made"]),
        pytest.raises(
            PluginError,
            match=r"extra: technique 'made' failed in its denoiser handler at step 0 of transformer: TypeError",
        ),
    ):
        one_step(shared)


def test_a_proceed_that_outlives_its_forward_is_refused(shared: Any, register: Any) -> None:
    kept: list[Any] = []

    def keep(call: Any, proceed: Any) -> Any:
        kept.append(lambda: proceed(call))
        return proceed(call)

    register(technique(denoiser=keep))
    with hasten.accelerate(shared, ["made"]):
        one_step(shared)
        with pytest.raises(PluginError, match="after its forward of transformer had ended"):
            kept[0]()


class _EnoughError(BaseException):
    """A technique's own."""


def test_a_technique_may_end_a_run_from_inside_and_catch_that(shared: Any, register: Any) -> None:
    def listen(call: Any, proceed: Any) -> Any:
        try:
            proceed(call.replace_arguments({"num_inference_steps": 3}))
        except _EnoughError as enough:
            heard.append(enough.args)
        asking.clear()
        return proceed(call)

    def answer(call: Any, proceed: Any) -> Any:
        if asking:
            raise _EnoughError(sorted(call.kwargs)[0])
        return proceed(call)

    heard: list[Any] = []
    asking = [True]
    unlisted = technique(denoiser=answer)
    unlisted.name = "unlisted"
    register(technique(run=listen, denoiser=answer))
    register(unlisted, "another")
    with hasten.accelerate(shared, ["made"]) as accel:
        one_step(shared)
        assert heard == [("encoder_hidden_states",)]
        assert accel.report().error is None
    asking.append(True)
    with (
        hasten.accelerate(shared, ["scale", "unlisted"]),
        pytest.raises(
            PluginError, match="technique 'unlisted' failed in its denoiser handler at step 0"
        ) as caught,
    ):
        one_step(shared)
    assert type(caught.value.__cause__) is _EnoughError


def test_a_fault_in_a_loop_of_the_users_own_is_named(shared: Any, register: Any) -> None:
    def fail(call: Any, proceed: Any) -> Any:
        raise LookupError("no")

    given: list[Any] = []
    hook = shared.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    one_step(shared)
    hook.remove()
    args, kwargs = given[0]
    register(technique(denoiser=fail))
    accel = hasten.accelerate(shared, ["made"])
    with pytest.raises(PluginError, match="'made' failed in its denoiser handler at step 0"), accel.run():
        shared.transformer(*args, **kwargs)
    with pytest.raises(ZeroDivisionError), accel.run():
        _ = 1 // 0
    accel.restore()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda call, output: call.with_sample(output, call.sample(output)[:, :1]),
            SHAPE,
        ),
        (
            lambda call, output: call.with_sample(output, call.sample(output).mean()),
            SHAPE,
        ),
        (lambda call, output: [call.sample(output)], "the same kind of output as proceed"),
        (lambda call, output: call.sample(output), "the same kind of output as proceed"),
    ],
)
def test_an_output_of_another_shape_or_kind_is_refused(
    change: Any, message: str, shared: Any, register: Any
) -> None:
    """The pipeline would broadcast it, or fail far away."""
    register(technique(denoiser=lambda call, proceed: change(call, proceed(call))))
    with hasten.accelerate(shared, ["made"]), pytest.raises(PluginError, match=message):
        one_step(shared)


def test_attention_of_another_shape_is_refused(shared: Any, register: Any) -> None:
    register(technique(attention=lambda call, proceed: proceed(call)[:, :1]))
    with (
        hasten.accelerate(shared, ["made"]),
        pytest.raises(PluginError, match=FLOATING),
    ):
        one_step(shared)


def test_a_result_that_was_forgotten_is_told(shared: Any, register: Any) -> None:
    def forgets(call: Any, proceed: Any) -> None:
        proceed(call)

    register(technique(run=forgets))
    with (
        hasten.accelerate(shared, ["made"]),
        pytest.raises(PluginError, match="returned None from its run handler"),
    ):
        one_step(shared)


def test_a_result_may_be_of_the_kind_that_the_call_asks_for(shared: Any, register: Any) -> None:
    """A handler that wants names asks for a data class, and answers with the tuple that the user asked for."""

    def names(call: Any, proceed: Any) -> Any:
        return (proceed(call.replace_arguments({"return_dict": True})).images,)

    register(technique(run=names))
    with hasten.accelerate(shared, ["made"]):
        assert isinstance(one_step(shared), torch.Tensor)


@pytest.mark.parametrize(
    "claims",
    [
        [hasten.Claim("attention.self", "exclusive")],  # type: ignore[arg-type]
        [hasten.Claim("attention.self", hasten.Access.READS, "transformer")],  # type: ignore[arg-type]
        [hasten.Claim(7, hasten.Access.READS)],  # type: ignore[arg-type]
        {"attention.self": hasten.Access.READS},
    ],
)
def test_claims_that_would_not_be_understood_are_refused(claims: Any, shared: Any, register: Any) -> None:
    """An access given as text collided with nothing."""
    made = technique()
    made.claims = lambda self, target: claims  # type: ignore[method-assign, misc, assignment]
    register(made)
    with pytest.raises(PluginError, match=r"plugin extra: technique 'made' returned .* from claims; return"):
        hasten.plan(shared, ["made"])


def test_a_severity_that_does_not_exist_is_refused(shared: Any, register: Any) -> None:
    """It was neither refused nor told that the technique does not fit."""
    made = technique()
    made.check = lambda self, target: [hasten.Finding("fatal", "no")]  # type: ignore[method-assign, misc, assignment, arg-type]
    register(made)
    with pytest.raises(PluginError, match=r"from check; .* severity of error, warning, note"):
        hasten.plan(shared, ["made"])


def test_a_technique_asked_twice_for_its_claims_may_not_change_its_mind(shared: Any, register: Any) -> None:
    answers = iter([[hasten.Claim("weights.structure", hasten.Access.READS)]])
    made = technique()
    made.claims = lambda self, target: next(answers)  # type: ignore[method-assign, misc, assignment]
    register(made)
    hasten.accelerate(shared, ["made"]).restore()


def test_validators_that_raise_are_named(shared: Any, register: Any) -> None:
    from pydantic import field_validator

    class Strict(hasten.TechniqueConfig):
        size: int = 1

        @field_validator("size")
        @classmethod
        def _fail(cls, value: int) -> int:
            raise SystemExit("no")

    made = technique()
    made.config_class = Strict
    register(made)
    with pytest.raises(PluginError, match=r"extra: technique 'made' failed in its options: SystemExit: no"):
        hasten.plan(shared, {"made": {"size": 2}})


def test_a_wrapper_that_fails_when_it_is_called_again_undoes_its_place(shared: Any, register: Any) -> None:
    """Removing the technique below calls it again; restoring never does."""
    before = fingerprint(shared)
    calls: list[Any] = []

    class Below(technique()):  # type: ignore[misc]
        name = "below"

        def attach(self, target: Any, seams: Any) -> None:
            seams.journal.wrap_callable(
                shared.transformer, "enable_gradient_checkpointing", lambda f: lambda: f()
            )

    class Above(technique()):  # type: ignore[misc]
        name = "above"

        def attach(self, target: Any, seams: Any) -> None:
            def wrapper(below: Any) -> Any:
                calls.append(below)
                if len(calls) > 1:
                    raise SystemExit("no")
                return lambda: below()

            seams.journal.wrap_callable(shared.transformer, "enable_gradient_checkpointing", wrapper)

    register(Below, "one")
    register(Above, "two")
    with (
        hasten.accelerate(shared, ["below", "above"]) as accel,
        pytest.raises(PluginError, match=r"two: technique 'above' failed in its wrapper of"),
    ):
        accel.remove("below")
    assert len(calls) == 2
    hasten.accelerate(shared, ["below"]).restore()
    assert not before.diff(fingerprint(shared))


# --- callbacks of the user


@pytest.mark.parametrize("what", ["call", "restore", "remove", "paused", "fail inside"])
def test_a_callback_may_use_the_pipeline_and_the_handle(what: str) -> None:
    pipe, control = FAMILIES["flux"](), FAMILIES["flux"]()
    stock = one_step(control)
    inner: list[Any] = []

    def callback(pipe: Any, index: int, timestep: Any, tensors: Any) -> Any:
        if index == 0:
            if what in ("call", "fail inside"):
                scheduler = pipe.scheduler
                pipe.scheduler = type(scheduler).from_config(scheduler.config)
                try:
                    inner.append(one_step(pipe, callback_on_step_end=stop if what == "fail inside" else None))
                except LookupError as error:
                    inner.append(error)
                pipe.scheduler = scheduler
            elif what == "paused":
                with accel.paused():
                    pass
            else:
                accel.restore() if what == "restore" else accel.remove("seen")
        return tensors

    def stop(*_: Any) -> Any:
        raise LookupError("enough")

    accel = hasten.accelerate(pipe, {"scale": {"factor": 1.0}, "seen": {}, "faulty": {}})
    assert torch.equal(one_step(pipe, callback_on_step_end=callback), stock)
    if what == "call":
        assert torch.equal(inner[0], stock)
    if what == "fail inside":
        assert isinstance(inner[0], LookupError)
    accel.restore()
    difference = fingerprint(control).diff(fingerprint(pipe))
    assert not difference, difference
    assert torch.equal(one_step(pipe), stock)
