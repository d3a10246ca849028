"""Handles that were dropped, threads, copies, and calls from callbacks."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.models.attention_dispatch import AttentionBackendName
from families import FAMILIES

import hasten

HALF = {"scale": {"factor": 0.5}}


class Held:
    """A call of a pipeline in a thread of its own, held up in its first step until :meth:`finish`."""

    def __init__(self, run: Any, pipe: Any, family: str = "flux") -> None:
        self._arrived, self._go_on = threading.Event(), threading.Event()
        self.result: Any = None

        def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index == 0:
                self._arrived.set()
                self._go_on.wait(60)
            return tensors

        def work() -> None:
            self.result = run(pipe, family, callback_on_step_end=callback)

        self._thread = threading.Thread(target=work)

    def __enter__(self) -> Held:
        self._thread.start()
        assert self._arrived.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> Any:
        self._go_on.set()
        self._thread.join()
        return self.result


def test_a_dropped_handle_is_given_back(flux: Any, run: Any) -> None:
    assert hasten.acceleration_of(flux) is None
    stock = run(flux, "flux")
    hasten.accelerate(flux, HALF)
    gc.collect()
    assert not torch.equal(run(flux, "flux"), stock)
    found = hasten.acceleration_of(flux)
    assert found is not None
    assert found is hasten.acceleration_of(flux)
    assert [step.index for step in found.report().steps] == [0, 1]
    for other in (copy.copy(flux), copy.deepcopy(flux), type(flux)(**flux.components), object()):
        assert hasten.acceleration_of(other) is None
        hasten.restore(other)
    with pytest.raises(hasten.ConflictError, match=r"hasten\.restore\(pipe\)"):
        hasten.accelerate(flux, HALF)
    hasten.restore(flux)
    hasten.restore(flux)
    assert hasten.acceleration_of(flux) is None
    assert torch.equal(run(flux, "flux"), stock)
    found.restore()
    hasten.accelerate(flux, HALF).restore()


def test_a_second_thread_is_refused_and_harms_nothing(flux: Any, run: Any) -> None:
    accel = hasten.accelerate(flux, HALF)
    expected = run(flux, "flux")
    words = r"in a call in another thread.*a lock.*acceleration_of\(pipe\)\.view\(\)"
    with Held(run, flux) as held:
        with pytest.raises(hasten.ConflictError, match=words):
            run(flux, "flux")
        with accel.paused(), pytest.raises(hasten.ConflictError, match=words):
            run(flux, "flux")
        with pytest.raises(hasten.ConflictError, match=words), accel.run():
            pass
        assert torch.equal(held.finish(), expected)
    assert accel.report().error is None
    assert torch.equal(run(flux, "flux"), expected)


def test_a_stock_call_begun_in_a_pause_keeps_others_out(flux: Any, run: Any) -> None:
    stock = run(flux, "flux")
    accel = hasten.accelerate(flux, HALF)
    with accel.paused():
        held = Held(run, flux).__enter__()
    with pytest.raises(hasten.ConflictError, match="another thread"):
        run(flux, "flux")
    assert torch.equal(held.finish(), stock)


def test_an_interrupted_call_lets_the_next_thread_in(flux: Any, run: Any) -> None:
    with hasten.accelerate(flux, {"scale": {"explode_at": 1}}):
        with pytest.raises(KeyboardInterrupt):
            run(flux, "flux")
        failed: list[BaseException] = []

        def work() -> None:
            try:
                run(flux, "flux")
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert isinstance(failed[0], KeyboardInterrupt)


def test_a_copy_runs_stock_while_the_original_is_in_a_call(flux: Any, run: Any, register: Any) -> None:
    """Also one that is made while the call has swapped parts of the pipeline."""
    stock = run(flux, "flux")

    class Swaps(hasten.Technique[Any]):
        name = "swaps"
        summary = "another scheduler, another denoiser"
        config_class = hasten.TechniqueConfig

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            seams.scheduler(lambda scheduler, call: type(scheduler).from_config(scheduler.config, shift=7.0))
            seams.run(self._around)

        def _around(self, call: Any, proceed: Any) -> Any:
            attributes = vars(call.pipe)
            kept, attributes["transformer"] = attributes["transformer"], FAMILIES["flux"]().transformer
            try:
                return proceed(call)
            finally:
                attributes["transformer"] = kept

    register(Swaps)
    transformer, scheduler = flux.transformer, flux.scheduler
    hasten.accelerate(flux, {"swaps": {}, "scale": {"factor": 0.5}})
    expected = run(flux, "flux")
    before = copy.copy(flux)
    with Held(run, flux) as held:
        for made in (before, copy.copy(flux)):
            assert made.transformer is transformer
            assert made.vae is flux.vae
            assert type(made.scheduler) is type(scheduler)
            assert made.scheduler.config.shift == scheduler.config.shift
            assert torch.equal(run(made, "flux"), stock)
        assert torch.equal(run(copy.deepcopy(flux), "flux"), stock)
        assert torch.equal(held.finish(), expected)


def test_accelerated_copies_serve_threads(flux: Any, run: Any) -> None:
    expected = {}
    for factor in (0.5, 2.0):
        with hasten.accelerate(flux, {"scale": {"factor": factor}}):
            expected[factor] = run(flux, "flux")
    views = {factor: copy.copy(flux) for factor in expected}
    for view in views.values():  # a copy of a stock pipeline shares the scheduler
        view.scheduler = copy.deepcopy(view.scheduler)
    for factor, view in views.items():
        hasten.accelerate(view, {"scale": {"factor": factor}})
    with Held(run, views[0.5]) as held:
        assert torch.equal(run(views[2.0], "flux"), expected[2.0])
        assert torch.equal(held.finish(), expected[0.5])


def test_two_accelerations_do_not_edit_one_place(flux: Any, run: Any) -> None:
    """The second would build on the first one's edit and take it for the original."""
    view = copy.copy(flux)
    accel = hasten.accelerate(flux, ["count"])
    with pytest.raises(hasten.ConflictError, match=r"'count' edits FluxTransformer2DModel\.counted"):
        hasten.accelerate(view, ["count"])
    assert hasten.acceleration_of(view) is None
    assert flux.transformer.counted
    accel.restore()
    hasten.accelerate(view, ["count"]).restore()
    assert not hasattr(flux.transformer, "counted")


def as_function(function: Callable[[Any], None]) -> Any:
    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        function(index)
        return tensors

    return callback


def as_object(function: Callable[[Any], None]) -> Any:
    class Notes(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012
        seen = 0

        def callback_fn(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> Any:
            self.seen += 1
            function(index)
            return tensors

    return Notes()


@pytest.mark.parametrize("make", [as_function, as_object])
def test_what_a_callback_calls_is_no_part_of_the_run(flux: Any, run: Any, make: Any) -> None:
    stock = run(flux, "flux")
    accel = hasten.accelerate(flux, {**HALF, "count": {}, "seen": {}})
    expected = run(flux, "flux")
    view = copy.copy(flux)
    inner = []
    callback = make(lambda index: inner.append(run(view, "flux")))
    assert torch.equal(run(flux, "flux", callback_on_step_end=callback), expected)
    accel.restore()  # one of its edits of the structure is shared with the copy
    assert all(torch.equal(picture, stock) for picture in inner)
    assert len(inner) == 2
    assert [step.facts["count"]["forwards"] for step in accel.report().steps] == [1, 2]
    assert getattr(callback, "seen", 2) == 2


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Shapes of the queries that a backend of the user's has seen."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    shapes: list[Any] = []

    def fake(query: Any, key: Any, value: Any, **_: Any) -> Any:
        shapes.append(query.shape)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.FLEX, fake)
    return shapes


def test_two_runs_share_a_users_backend(flux: Any, run: Any, used: list[Any]) -> None:
    """The first to leave must not take the other's processors back to a backend that the seam does not see."""
    processors = list(flux.transformer.attn_processors.values())
    for processor in processors:
        processor._attention_backend = AttentionBackendName.FLEX
    other = copy.copy(flux)
    other.scheduler = copy.deepcopy(other.scheduler)
    accels = [hasten.accelerate(pipe, ["seen"]) for pipe in (flux, other)]
    expected = run(flux, "flux")
    with Held(run, flux) as held:
        used.clear()
        assert torch.equal(run(other, "flux"), expected)
        assert len(used) == 2 * len(processors)
        assert torch.equal(held.finish(), expected)
    assert len(used) == 3 * len(processors)
    assert {processor._attention_backend for processor in processors} == {AttentionBackendName.FLEX}
    assert accels[0].report().error is None


def test_a_processor_that_layers_share_keeps_its_backend(flux: Any, run: Any, used: list[Any]) -> None:
    shared = next(iter(flux.transformer.attn_processors.values()))
    flux.transformer.set_attn_processor(shared)
    shared._attention_backend = AttentionBackendName.FLEX
    with hasten.accelerate(flux, ["seen"]):
        run(flux, "flux")
    assert len(used) == 2 * len(flux.transformer.attn_processors)
    assert shared._attention_backend == AttentionBackendName.FLEX
