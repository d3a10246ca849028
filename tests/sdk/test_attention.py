"""The attention seam: every planned layer is seen, by name, on whatever backend, or the run fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

import hasten
from hasten._fingerprint import fingerprint

FIRST = "transformer.transformer_blocks.0.attn"


def watching(handler: Callable[..., Any], layers: Any = None) -> type[hasten.Technique[Any]]:
    class Watches(hasten.Technique[Any]):
        name = "watches"
        summary = "for one test"
        config_class = hasten.TechniqueConfig

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            seams.attention(handler, layers)

    return Watches


def test_handler_gets_the_call_and_may_change_it(flux: Any, run: Any, register: Any) -> None:
    calls = []

    def handle(call: Any, proceed: Any) -> torch.Tensor:
        calls.append(call)
        return proceed(replace(call, value=call.value * 0))

    register(watching(handle, [FIRST]))
    stock = run(flux, "flux")
    with hasten.accelerate(flux, ["watches"]) as accel:
        assert "attention: watches" in accel.plan.patches
        assert not torch.equal(run(flux, "flux"), stock)
    assert [call.layer for call in calls] == [FIRST] * 2
    assert calls[0].module is flux.transformer.transformer_blocks[0].attn
    assert [call.step.index for call in calls] == [0, 1]
    assert calls[0].query.shape == calls[0].key.shape
    assert torch.equal(run(flux, "flux"), stock)


def test_attention_inside_a_handler_is_not_intercepted_again(flux: Any, run: Any, register: Any) -> None:
    def handle(call: Any, proceed: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(call.query, call.key, call.value)

    register(watching(handle))
    stock = run(flux, "flux")
    with hasten.accelerate(flux, ["watches"]):
        assert torch.equal(run(flux, "flux"), stock)


@pytest.mark.parametrize("layer", ["transformer.transformer_blocks.0.atn", "transformer.proj_out"])
def test_unknown_layer_is_refused(flux: Any, register: Any, layer: str) -> None:
    register(watching(lambda call, proceed: proceed(call), [layer]))
    before = fingerprint(flux)
    with pytest.raises(hasten.UnsupportedError, match=f"no attention layer '{layer}'"):
        hasten.accelerate(flux, ["watches"])
    assert fingerprint(flux) == before


def test_fewer_interceptions_than_planned_is_an_error(flux: Any, run: Any) -> None:
    class Eager:
        def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, *_: Any) -> Any:
            if encoder_hidden_states is None:
                return hidden_states
            return hidden_states, encoder_hidden_states

    flux.transformer.transformer_blocks[0].attn.processor = Eager()
    with hasten.accelerate(flux, ["seen"]):
        with pytest.raises(
            hasten.UnsupportedError, match=rf"seen: .*{FIRST} was not intercepted.*Eager does not use"
        ):
            run(flux, "flux")
        assert not any(module._forward_pre_hooks for module in flux.transformer.modules())


def test_layer_that_never_runs_is_an_error(flux: Any, run: Any) -> None:
    block = flux.transformer.transformer_blocks[0]
    block.attn.forward = lambda *args, **kwargs: torch.zeros(())
    block.forward = lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)
    with (
        hasten.accelerate(flux, ["seen"]),
        pytest.raises(hasten.UnsupportedError, match=f"{FIRST} was not intercepted"),
    ):
        run(flux, "flux")


@pytest.mark.parametrize("globally", [False, True])
def test_users_backend_computes_the_dense_path(
    flux: Any, run: Any, monkeypatch: pytest.MonkeyPatch, globally: bool
) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    used = []

    def fake_flex(query: Any, key: Any, value: Any, **_: Any) -> Any:
        used.append(query.shape)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1).matmul(v).transpose(1, 2)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.FLEX, fake_flex)
    processors = flux.transformer.attn_processors
    if not globally:
        for processor in processors.values():
            processor._attention_backend = AttentionBackendName.FLEX
    expected = run(flux, "flux") if not globally else None
    used.clear()
    before = fingerprint(flux)
    with hasten.accelerate(flux, ["seen"]) as accel:
        if globally:
            with attention_backend("flex"):
                run(flux, "flux")
        else:
            assert torch.equal(run(flux, "flux"), expected)
        assert accel.report().steps[0].facts["seen"]["layers"] == [
            f"transformer.{name.removesuffix('.processor')}" for name in processors
        ]
    assert len(used) == 2 * len(processors)
    assert not before.diff(fingerprint(flux)) or globally
    kept = {getattr(processor, "_attention_backend", None) for processor in processors.values()}
    assert kept == ({None} if globally else {AttentionBackendName.FLEX})


class Answers(hasten.Technique[Any]):
    """Answers every forward without the denoiser."""

    name = "answers"
    summary = "for one test"
    config_class = hasten.TechniqueConfig

    def claims(self, target: Any) -> list[Any]:
        return []

    def attach(self, target: Any, seams: Any) -> None:
        def handle(call: Any, proceed: Any) -> Any:
            return (torch.zeros_like(call.kwargs["hidden_states"]),)

        seams.denoiser(handle)


def test_a_run_without_one_computed_forward_misses_no_attention(flux: Any, run: Any, register: Any) -> None:
    register(Answers)
    with hasten.accelerate(flux, ["answers", "seen"]) as accel:
        run(flux, "flux")
        assert [step.resolution for step in accel.report().steps] == [None, None]


def test_a_handler_that_calls_the_module_past_the_attention_is_found_out(
    flux: Any, run: Any, register: Any
) -> None:
    class Bypasses(Answers):
        name = "bypasses"

        def attach(self, target: Any, seams: Any) -> None:
            seams.denoiser(lambda call, proceed: call.module(**call.kwargs))

    register(Bypasses)
    with (
        hasten.accelerate(flux, ["bypasses", "seen"]),
        pytest.raises(hasten.UnsupportedError, match="was not intercepted"),
    ):
        run(flux, "flux")
