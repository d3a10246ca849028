"""Handlers that return NaN or something that is no result: the technique is named, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES

import hasten

LAYER = "transformer.transformer_blocks.0.attn"


def made(name: str, **handlers: Callable[..., Any]) -> type[hasten.Technique[Any]]:
    """A technique with these handlers on the seams of these names."""

    class Made(hasten.Technique[Any]):
        summary = "for one test"
        config_class = hasten.TechniqueConfig

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            for seam, handler in handlers.items():
                if seam == "module":
                    seams.module(LAYER, handler)
                else:
                    getattr(seams, seam)(handler)

    Made.name = name
    return Made


@pytest.fixture(autouse=True)
def clean(flux: Any) -> Iterator[None]:
    yield
    assert not any("_compiled_call_impl" in vars(module) for module in flux.transformer.modules())
    assert not any(module._forward_pre_hooks for module in flux.transformer.modules())


def poison_at(step: int, layer: str = LAYER) -> Callable[..., Any]:
    def handle(call: Any, proceed: Any) -> torch.Tensor:
        output = proceed(call)
        return output * float("nan") if call.step.index == step and call.layer == layer else output

    return handle


def neutral(call: Any, proceed: Any) -> Any:
    return proceed(call)


@pytest.mark.parametrize("others", [["scale"], ["scale", "seen"], ["before", "seen"]])
def test_nan_of_an_attention_handler_names_its_technique(
    flux: Any, run: Any, register: Any, others: list[str]
) -> None:
    register(made("culprit", attention=poison_at(1)))
    register(made("before", attention=neutral), "before")
    for names in (["culprit", *others], [*others, "culprit"]):
        with (
            hasten.accelerate(flux, names),
            pytest.raises(
                hasten.NumericalError, match=r"technique 'culprit' (returned|brought) NaN.*step 1 \("
            ),
        ):
            run(flux, "flux")


def test_among_several_the_layer_is_named_too(flux: Any, run: Any, register: Any) -> None:
    register(made("culprit", attention=poison_at(0)))
    with (
        hasten.accelerate(flux, ["seen", "culprit"]),
        pytest.raises(
            hasten.NumericalError, match=rf"'culprit' returned NaN .*attention handler of {LAYER} at step 0"
        ),
    ):
        run(flux, "flux")


def test_nan_of_a_module_handler_names_its_technique(flux: Any, run: Any, register: Any) -> None:
    def handle(inner: Any, args: Any, kwargs: Any) -> Any:
        first, *rest = inner(*args, **kwargs)
        return (first * float("inf"), *rest)

    register(made("culprit", module=handle))
    with (
        hasten.accelerate(flux, ["scale", "culprit"]),
        pytest.raises(hasten.NumericalError, match="technique 'culprit' brought NaN"),
    ):
        run(flux, "flux")


def test_nan_of_the_model_blames_no_attention_handler(flux: Any, run: Any) -> None:
    with torch.no_grad():
        flux.transformer.transformer_blocks[0].attn.to_q.weight.fill_(float("nan"))
    with (
        hasten.accelerate(flux, ["scale", "seen"]),
        pytest.raises(
            hasten.NumericalError,
            match=r"the denoiser returned NaN.*Techniques that changed its arguments: 'scale', 'seen'",
        ),
    ):
        run(flux, "flux")


WRONG_ATTENTION: dict[str, Callable[[torch.Tensor], Any]] = {
    "integers": lambda output: output.round().long(),
    "complex": lambda output: output.to(torch.complex64),
    "bool": lambda output: output > 0,
    "a token short": lambda output: output[:, :, :-1],
    "a head short": lambda output: output[:, :-1],
    "one axis less": lambda output: output[0],
    "broadcast": lambda output: output[:, :, :1],
    "nothing": lambda output: None,
    "a tuple": lambda output: (output,),
    "an array": lambda output: output.numpy(),
}


@pytest.mark.parametrize("wrong", WRONG_ATTENTION)
def test_what_is_no_attention_is_refused(flux: Any, run: Any, register: Any, wrong: str) -> None:
    register(made("culprit", attention=lambda call, proceed: WRONG_ATTENTION[wrong](proceed(call))))
    with (
        hasten.accelerate(flux, ["seen", "culprit"]),
        pytest.raises(
            hasten.PluginError, match=rf"'culprit' returned .*attention handler at {LAYER}, step 0"
        ),
    ):
        run(flux, "flux")


WRONG_PREDICTION: dict[str, Callable[[torch.Tensor], Any]] = {
    "integers": lambda sample: sample.round().int(),
    "complex": lambda sample: sample.to(torch.complex64),
    "bool": lambda sample: sample > 0,
    "a token short": lambda sample: sample[:, :-1],
    "broadcast over channels": lambda sample: sample[..., :1],
    "broadcast over the batch": lambda sample: sample[0],
    "nothing": lambda sample: None,
    "a number": lambda sample: 1.0,
}


@pytest.mark.parametrize("as_output", [True, False])
@pytest.mark.parametrize("wrong", WRONG_PREDICTION)
def test_what_is_no_prediction_is_refused(
    flux: Any, run: Any, register: Any, wrong: str, as_output: bool
) -> None:
    def handle(call: Any, proceed: Any) -> Any:
        output = proceed(call)
        broken = WRONG_PREDICTION[wrong](call.sample(output))
        return call.with_sample(output, broken) if as_output else broken

    register(made("culprit", denoiser=handle))
    with (
        hasten.accelerate(flux, ["scale", "culprit", "count"]),
        pytest.raises(
            hasten.PluginError, match=r"'culprit' returned .*denoiser handler at step 0 of transformer"
        ),
    ):
        run(flux, "flux")


@pytest.mark.parametrize(
    "wrong", [(), "abc", {}, [], object()], ids=["tuple", "text", "mapping", "list", "object"]
)
def test_odd_objects_are_refused(flux: Any, run: Any, register: Any, wrong: Any) -> None:
    register(made("culprit", denoiser=lambda call, proceed: (proceed(call), wrong)[1]))
    with hasten.accelerate(flux, ["culprit"]), pytest.raises(hasten.PluginError, match="'culprit' returned"):
        run(flux, "flux")


def test_integers_that_were_never_computed_are_refused_too(flux: Any, run: Any, register: Any) -> None:
    register(made("culprit", denoiser=lambda call, proceed: (torch.zeros(1, 4, dtype=torch.int64),)))
    with (
        hasten.accelerate(flux, ["culprit"]),
        pytest.raises(hasten.PluginError, match="a floating-point type"),
    ):
        run(flux, "flux")


@pytest.mark.parametrize("family", ["flux", "pixart-sigma", "z-image", "wan-i2v", "cogvideox-rope"])
def test_a_prediction_at_another_size_may_come_from_a_smaller_forward(
    family: str, run: Any, register: Any
) -> None:
    """Channels that the model adds or drops are no mistake; half of the tokens are."""
    register(made("short", denoiser=lambda call, proceed: halved(call, proceed(call))))
    pipe = FAMILIES[family]()
    with hasten.accelerate(pipe, {"bottleneck": {"min_pixels": 1, "low_until": 0.5, "high_first": 1.0}}):
        run(pipe, family)
    with hasten.accelerate(pipe, ["short"]), pytest.raises(hasten.PluginError, match="'short' returned"):
        run(pipe, family)


def halved(call: Any, output: Any) -> Any:
    sample = call.sample(output)
    single = isinstance(sample, torch.Tensor)
    axis = 1 if single and sample.ndim == 3 else -2
    half = [item.narrow(axis, 0, item.shape[axis] // 2) for item in ([sample] if single else sample)]
    return call.with_sample(output, half[0] if single else half)


def test_facts_that_are_told_later_are_asked_for_once_after_the_call(
    flux: Any, run: Any, register: Any
) -> None:
    asked: list[int] = []
    done: list[bool] = []

    def tell(index: int) -> dict[str, Any]:
        assert done, "asked for while the call goes on"
        asked.append(index)
        if index == 1:
            raise RuntimeError("a broken device")
        return {"number": index}

    def record(call: Any, proceed: Any) -> Any:
        call.run.record_later("later", lambda index=call.step.index: tell(index))
        call.run.record("later", at_once=True)
        return proceed(call)

    def end(call: Any, proceed: Any) -> Any:
        output = proceed(call)
        done.append(True)
        return output

    register(made("later", denoiser=record, run=end))
    with hasten.accelerate(flux, ["later"]) as acceleration:
        with pytest.warns(
            RuntimeWarning, match="'later'.* failed in record_later: RuntimeError: a broken device"
        ):
            run(flux, "flux")
        steps = acceleration.report().steps
    assert asked == [step.index for step in steps]
    assert [step.facts["later"].get("number") for step in steps] == [0, None, *asked[2:]]
    assert all(step.facts["later"]["at_once"] for step in steps)
