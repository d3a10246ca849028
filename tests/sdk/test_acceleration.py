"""The verbs of an acceleration, and what keeps two of them apart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, seeded

import hasten
from hasten._fingerprint import fingerprint

BOTH = {"scale": {"factor": 0.5}, "count": {}}


def technique(attach: Callable[..., None], name: str = "extra") -> type[hasten.Technique[Any]]:
    """A technique without options that does just this when attached."""

    class Made(hasten.Technique[Any]):
        summary = "made for one test"
        config_class = hasten.TechniqueConfig

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            attach(target, seams)

    Made.name = name
    return Made


def test_failure_half_way_through_attaching_unwinds(flux: Any) -> None:
    before = fingerprint(flux)
    with pytest.raises(
        hasten.PluginError,
        match=r"technique 'count' failed in attach: RuntimeError: attaching failed half-way",
    ):
        hasten.accelerate(flux, {"scale": {}, "count": {"fail_to_attach": True}})
    assert fingerprint(flux) == before


@pytest.mark.parametrize("names", [("scale", "count"), ("count", "scale")])
@pytest.mark.parametrize("removed", ["scale", "count"])
def test_removing_one_keeps_the_other(flux: Any, run: Any, names: tuple[str, str], removed: str) -> None:
    kept = next(name for name in names if name != removed)
    with hasten.accelerate(FAMILIES["flux"](), [kept]) as alone:
        expected = run(alone._pipe, "flux")
    before = fingerprint(flux)
    accel = hasten.accelerate(flux, list(names))
    both = run(flux, "flux")
    accel.remove(removed)
    assert torch.equal(run(flux, "flux"), expected)
    assert not torch.equal(both, expected)
    assert [t.name for t in accel.plan.techniques] == [kept]
    with pytest.raises(hasten.ConfigError, match=f"{removed!r} is not attached.*Attached: {kept}"):
        accel.remove(removed)
    accel.remove(kept)
    run(control := FAMILIES["flux"](), "flux")
    assert not fingerprint(control).diff(fingerprint(flux))
    assert before.entries["pipeline"] == fingerprint(flux).entries["pipeline"]


def test_first_listed_is_outermost(flux: Any, run: Any) -> None:
    with hasten.accelerate(flux, {"scale": {"factor": 0.0}, "count": {}}):
        zero = run(flux, "flux")
    with hasten.accelerate(flux, {"count": {}, "scale": {"factor": 0.0}}):
        one = run(flux, "flux")
    assert not torch.equal(zero, one)  # (x + 1) * 0 against x * 0 + 1


def test_two_pipelines_of_one_class_keep_their_settings(run: Any) -> None:
    pipes = [FAMILIES["flux"]() for _ in range(2)]
    alone = []
    for pipe, factor in zip(pipes, (0.5, 2.0)):
        with hasten.accelerate(pipe, {"scale": {"factor": factor}}):
            alone.append(run(pipe, "flux"))
    accels = [hasten.accelerate(p, {"scale": {"factor": f}}) for p, f in zip(pipes, (0.5, 2.0))]
    assert torch.equal(run(pipes[1], "flux"), alone[1])
    assert torch.equal(run(pipes[0], "flux"), alone[0])
    accels[0].restore()
    assert torch.equal(run(pipes[1], "flux"), alone[1])


def test_pipelines_that_share_modules_run_in_threads(flux: Any, run: Any) -> None:
    sibling, stock = (type(flux)(**flux.components) for _ in range(2))
    for pipe in (sibling, stock):
        pipe.scheduler = type(flux.scheduler).from_config(flux.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
    users = [(flux, 0.5), (sibling, 2.0), (stock, None)]
    expected = {}
    for pipe, factor in users:
        accel = factor and hasten.accelerate(pipe, {"scale": {"factor": factor}, "seen": {}})
        expected[factor] = run(pipe, "flux")
        if accel:
            accel.restore()
    accels = [hasten.accelerate(p, {"scale": {"factor": f}, "seen": {}}) for p, f in users if f]
    wrong: list[Any] = []
    barrier = threading.Barrier(len(users))

    def work(pipe: Any, factor: float | None) -> None:
        barrier.wait()
        for _ in range(8):
            if not torch.equal(run(pipe, "flux"), expected[factor]):
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=user) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for accel in accels:
        accel.restore()
    assert "_compiled_call_impl" not in vars(flux.transformer)


def test_accelerating_twice_is_refused(flux: Any) -> None:
    with hasten.accelerate(flux, ["scale"]), pytest.raises(hasten.ConflictError, match="already accelerated"):
        hasten.accelerate(flux, ["count"])
    hasten.accelerate(flux, ["count"]).restore()


def test_paused_is_the_stock_pipeline(flux: Any, run: Any) -> None:
    stock = run(flux, "flux")
    with hasten.accelerate(flux, ["scale"]) as accel:
        with accel.paused():
            assert torch.equal(run(flux, "flux"), stock)
            assert accel.report().steps == ()
        assert not torch.equal(run(flux, "flux"), stock)


def test_run_handler_may_run_the_pipeline_several_times(flux: Any, run: Any, register: Any) -> None:
    clocks: list[list[int]] = []

    def attach(target: Any, seams: Any) -> None:
        def around(call: Any, proceed: Any) -> Any:
            first = proceed(call)
            proceed(call.replace_arguments({"num_inference_steps": 3}))
            return first

        def count(call: Any, proceed: Any) -> Any:
            state = call.run.state("extra")
            if not state:
                state["steps"] = []
                clocks.append(state["steps"])
            state["steps"].append(call.step.index)
            return proceed(call)

        seams.run(around)
        seams.denoiser(count)

    register(technique(attach))
    stock = run(flux, "flux")
    with hasten.accelerate(flux, ["extra"]) as accel:
        assert torch.equal(run(flux, "flux"), stock)
    assert clocks == [[0, 1], [0, 1, 2]]
    assert [(step.run, step.index) for step in accel.report().steps] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
    ]


def test_callback_may_call_the_same_pipeline(flux: Any, run: Any) -> None:
    with hasten.accelerate(flux, BOTH) as accel:
        expected = run(flux, "flux")
        inner = []

        def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index == 0:
                state = pipe.scheduler
                pipe.scheduler = type(state).from_config(state.config)
                inner.append(run(pipe, "flux"))
                pipe.scheduler = state
            return tensors

        run(flux, "flux", callback_on_step_end=callback)
        assert torch.equal(inner[0], expected)
        assert [step.facts["count"]["forwards"] for step in accel.report().steps] == [1, 2]
        assert "_compiled_call_impl" not in vars(flux.transformer)


def test_handler_that_calls_the_module_itself_gets_the_module_itself(
    flux: Any, run: Any, register: Any
) -> None:
    def attach(target: Any, seams: Any) -> None:
        seams.denoiser(lambda call, proceed: call.module(**call.kwargs))

    register(technique(attach))
    stock = run(flux, "flux")
    with hasten.accelerate(flux, ["extra"]):
        assert torch.equal(run(flux, "flux"), stock)


def test_custom_loop(flux: Any, run: Any) -> None:
    received: list[Any] = []
    keep = flux.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: received.append((args, kwargs)), with_kwargs=True
    )
    run(flux, "flux")
    keep.remove()
    args, kwargs = received[0]
    plain = flux.transformer(*args, **kwargs)[0]
    accel = hasten.accelerate(flux, {"scale": {"factor": 0.5}})
    with accel.run(prompt="two words", num_inference_steps=1) as current:
        inside = flux.transformer(*args, **kwargs)[0]
        assert current.step.index == 0
        assert current.arguments["prompt"] == "two words"
    assert torch.equal(inside, plain * 0.5)
    assert torch.equal(flux.transformer(*args, **kwargs)[0], plain)
    assert len(accel.report().steps) == 1


def test_custom_loop_refuses_techniques_that_rewrite_calls(flux: Any, register: Any) -> None:
    register(technique(lambda target, seams: seams.run(lambda call, proceed: proceed(call))))
    accel = hasten.accelerate(flux, ["extra"])
    with (
        pytest.raises(hasten.UnsupportedError, match=r"extra changes whole pipeline calls.*remove"),
        accel.run(),
    ):
        pass


def test_wrong_argument_gets_the_pipelines_own_error(flux: Any) -> None:
    with (
        hasten.accelerate(flux, ["scale"]),
        pytest.raises(TypeError, match="unexpected keyword argument 'promt'"),
    ):
        flux(promt="a fox")


def test_scheduler_is_swapped_for_the_run_only(flux: Any, run: Any, register: Any) -> None:
    seen = []

    def attach(target: Any, seams: Any) -> None:
        seams.scheduler(lambda scheduler, call: type(scheduler).from_config(scheduler.config, shift=7.0))
        seams.denoiser(lambda call, proceed: (seen.append(call.run.pipe.scheduler), proceed(call))[1])

    register(technique(attach))
    original, saved = flux.scheduler, dict(flux.config)
    with hasten.accelerate(flux, ["extra"]):
        run(flux, "flux")
        assert flux.scheduler is original
    assert seen[0] is not original
    assert seen[0] is seen[1]
    assert dict(flux.config) == saved


def test_prompt_handler_sees_text_before_it_is_encoded(flux: Any, register: Any) -> None:
    seen: list[Any] = []
    texts: list[Any] = []

    def attach(target: Any, seams: Any) -> None:
        seams.run(lambda call, proceed: seen.append(call.arguments["prompt"]) or proceed(call))
        seams.prompt(lambda found, call: texts.append(found) or [text.upper() for text in found])

    register(technique(attach))
    encoded = []
    arguments = seeded("flux")
    embeddings = {name: arguments.pop(name) for name in ("prompt_embeds", "pooled_prompt_embeds")}

    class Encodes(type(flux)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, **kwargs: Any) -> Any:
            encoded.append(prompt)
            return super().encode_prompt(None, **{**kwargs, **embeddings})

    pipe = Encodes(**flux.components)
    pipe.set_progress_bar_config(disable=True)
    with hasten.accelerate(pipe, ["extra"]):
        pipe(**arguments, **embeddings)
        assert texts[-1] == ()
        pipe(prompt="a fox", **arguments)
        assert pipe.encode_prompt("a hen", prompt_2=None)
    assert seen[-1] == "a fox"
    assert texts[-1] == ("a fox",)
    assert encoded[-2:] == ["A FOX", "a hen"]


def test_zero_wrapped_forwards_is_an_error(flux: Any, run: Any) -> None:
    class Bypasses(type(flux)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            hidden = self.transformer
            self.transformer = type(hidden).from_config(hidden.config)
            try:
                return super().__call__(*args, **kwargs)
            finally:
                self.transformer = hidden

    pipe = Bypasses(**flux.components)
    pipe.set_progress_bar_config(disable=True)
    with (
        hasten.accelerate(pipe, ["scale"]),
        pytest.raises(hasten.UnsupportedError, match=r"no forward of transformer.*scale had no effect"),
    ):
        run(pipe, "flux")


def test_nan_names_step_and_technique(flux: Any, run: Any) -> None:
    with hasten.accelerate(flux, {"count": {}, "scale": {"poison_at": 1}}):
        with pytest.raises(hasten.NumericalError, match=r"technique 'scale' returned NaN.*step 1 \(level"):
            run(flux, "flux")
        assert "_compiled_call_impl" not in vars(flux.transformer)
    with torch.no_grad():
        flux.transformer.proj_out.bias.fill_(float("inf"))
    with (
        hasten.accelerate(flux, ["scale"]),
        pytest.raises(
            hasten.NumericalError, match=r"the denoiser returned NaN or infinity at step 0 .*'scale'"
        ),
    ):
        run(flux, "flux")


def test_keyboard_interrupt_in_a_run_restores(flux: Any, run: Any) -> None:
    with hasten.accelerate(flux, {"scale": {"explode_at": 1}, "seen": {}}):
        with pytest.raises(KeyboardInterrupt):
            run(flux, "flux")
        assert not any(module._forward_pre_hooks for module in flux.transformer.modules())
        assert "_compiled_call_impl" not in vars(flux.transformer)


def test_loaded_lora_keeps_working(flux: Any, run: Any) -> None:
    from peft import LoraConfig

    flux.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    stock = run(flux, "flux")
    with hasten.accelerate(flux, {"scale": {"factor": 1.0}, "seen": {}}):
        assert torch.equal(run(flux, "flux"), stock)
        flux.transformer.disable_adapters()
        assert not torch.equal(run(flux, "flux"), stock)
        flux.transformer.enable_adapters()
    assert torch.equal(run(flux, "flux"), stock)


def test_empty_configuration_only_measures(flux: Any, run: Any) -> None:
    stock = run(flux, "flux")
    with hasten.accelerate(flux, []) as accel:
        assert torch.equal(run(flux, "flux"), stock)
        assert [step.index for step in accel.report().steps] == [0, 1]
        assert accel.report().totals[0].count == 2


def test_swapped_denoiser_is_picked_up(flux: Any, run: Any) -> None:
    other = FAMILIES["flux"]().transformer
    with hasten.accelerate(flux, ["scale"]) as accel:
        flux.transformer = other
        run(flux, "flux")
        assert len(accel.report().steps) == 2
    assert flux.transformer is other
