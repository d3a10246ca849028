"""Adapters, quantised and cast weights, offloading: every technique is exact and active there, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline, call_kwargs
from test_pairs import ACTIVE, EXACT, STEPS, worked

import hasten

FAMILY = "sd3"


def lora(model: Any) -> None:
    """An adapter with weights that matter."""
    from peft import LoraConfig

    with torch.random.fork_rng():
        torch.manual_seed(5)
        model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))


def fused_lora(model: Any) -> None:
    lora(model)
    model.fuse_lora()


def int8_weights(model: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())


def int8_both(model: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())


def layerwise_casting(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def group_offload(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)


STATES: list[Callable[[Any], None]] = [
    lora,
    fused_lora,
    int8_weights,
    int8_both,
    layerwise_casting,
    group_offload,
]


@pytest.mark.parametrize("name", ["bottleneck", "cache", "guidance_interval", "rettention"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_exact_and_active_before_and_after_attaching(state: Callable[[Any], None], name: str) -> None:
    pipe = FAMILIES[FAMILY]()
    state(pipe.transformer)
    stock = baseline(pipe, FAMILY, **STEPS)
    with hasten.accelerate(pipe, {name: EXACT[name]}):
        torch.testing.assert_close(baseline(pipe, FAMILY, **STEPS), stock, rtol=1e-4, atol=1e-5)
    with hasten.accelerate(pipe, {name: ACTIVE[name]}) as accel:
        made = baseline(pipe, FAMILY, **STEPS)
        assert any(name in row.facts and worked(name, dict(row.facts[name])) for row in accel.report().steps)
    assert torch.isfinite(made).all()
    assert torch.equal(baseline(pipe, FAMILY, **STEPS), stock)
    later = FAMILIES[FAMILY]()
    with hasten.accelerate(later, {name: ACTIVE[name]}):
        state(later.transformer)
        torch.testing.assert_close(baseline(later, FAMILY, **STEPS), made, rtol=1e-4, atol=1e-5)


def test_an_adapter_that_is_scaled_and_swapped_between_calls_takes_effect() -> None:
    pipe = FAMILIES[FAMILY]()
    plain = baseline(pipe, FAMILY, **STEPS)
    with hasten.accelerate(pipe, {"bottleneck": ACTIVE["bottleneck"], "cache": ACTIVE["cache"]}):
        without = baseline(pipe, FAMILY, **STEPS)
        lora(pipe.transformer)
        full = baseline(pipe, FAMILY, **STEPS)
        pipe.transformer.set_adapters("default", 0.5)
        half = baseline(pipe, FAMILY, **STEPS)
        pipe.transformer.delete_adapters("default")
        assert torch.equal(baseline(pipe, FAMILY, **STEPS), without)
    assert not torch.equal(full, without)
    assert not torch.equal(half, full)
    assert torch.equal(baseline(pipe, FAMILY, **STEPS), plain)


def test_flops_of_quantised_layers_are_counted() -> None:
    plain, quantised = (FAMILIES[FAMILY]() for _ in range(2))
    int8_weights(quantised.transformer)

    def flops(pipe: Any) -> float:
        plan = hasten.plan(pipe, {"bottleneck": ACTIVE["bottleneck"]}, **call_kwargs(FAMILY))
        forecast = plan.techniques[0].forecast
        assert forecast is not None
        return forecast.baseline_flops

    assert flops(quantised) == flops(plain) > 0
