"""FLOPs and levels before anything runs."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES, call_kwargs
from torch.utils.flop_counter import FlopCounterMode

import hasten
from hasten._adapters.base import LatentSize
from hasten._flops import Tokens, forward_flops
from hasten._target import Target


def on_meta(kind: str, **config: Any) -> Any:
    with torch.device("meta"):
        return getattr(diffusers, kind)(**config)


COGVIDEOX_5B = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
PIXART_SIGMA = {"num_layers": 28, "cross_attention_dim": 1152, "caption_channels": 4096, "sample_size": 128}
SD3_MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
PUBLISHED = [
    ("FluxTransformer2DModel", {"guidance_embeds": True}, 2, 512, (128, 128), (64, 64), 74.39, 0.289),
    ("SD3Transformer2DModel", SD3_MEDIUM, 2, 333, (128, 128), (64, 64), 8.90, 0.237),
    ("PixArtTransformer2DModel", PIXART_SIGMA, 2, 300, (128, 128), (64, 64), 6.63, 0.194),
    ("WanTransformer3DModel", {}, 2, 512, (90, 160, 21), (60, 104, 21), 6523, 0.257),
    ("HunyuanVideoTransformer3DModel", {}, 2, 256, (90, 160, 33), (68, 120, 33), 12069, 0.355),
    ("LTXVideoTransformer3DModel", {}, 1, 128, (16, 22, 21), (8, 11, 21), 37.1, 0.188),
    ("CogVideoXTransformer3DModel", COGVIDEOX_5B, 2, 226, (60, 90, 13), (30, 44, 13), 332, 0.161),
    ("SanaTransformer2DModel", {}, 1, 300, (32, 32), (16, 16), 2.97, 0.282),
]
"""Released configurations with the tera-FLOPs of a forward and what the low size costs of it, as counted elsewhere."""


@pytest.mark.parametrize(
    ("kind", "config", "multiple", "text", "full", "low", "tera", "ratio"),
    PUBLISHED,
    ids=[p[0] for p in PUBLISHED],
)
def test_published_models_cost_what_a_counter_says(kind, config, multiple, text, full, low, tera, ratio):
    model = on_meta(kind, **config)
    cost = [forward_flops(model, Tokens.of(LatentSize(*size), multiple, text)) for size in (full, low)]
    assert cost[0] / 1e12 == pytest.approx(tera, rel=0.005)
    assert cost[1] / cost[0] == pytest.approx(ratio, abs=0.003)


def counted(model: Any, **inputs: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("side", [32, 64])
def test_the_count_agrees_with_torchs_counter_on_a_transformer(side):
    model = on_meta("SD3Transformer2DModel", sample_size=64, num_layers=2, pos_embed_max_size=64)
    meta = torch.device("meta")
    expected = counted(
        model,
        hidden_states=torch.empty(1, 16, side, side, device=meta),
        encoder_hidden_states=torch.empty(1, 77, 4096, device=meta),
        pooled_projections=torch.empty(1, 2048, device=meta),
        timestep=torch.empty(1, device=meta),
    )
    assert forward_flops(model, Tokens((side // 2) ** 2, 77)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("side", [32, 64])
def test_the_count_agrees_with_torchs_counter_on_a_unet(side):
    model = on_meta(
        "UNet2DConditionModel",
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=8,
        layers_per_block=2,
    )
    meta = torch.device("meta")
    expected = counted(
        model,
        sample=torch.empty(1, 4, side, side, device=meta),
        timestep=torch.empty(1, device=meta),
        encoder_hidden_states=torch.empty(1, 77, 96, device=meta),
    )
    assert forward_flops(model, Tokens(side * side, 77)) == pytest.approx(expected, rel=0.05)


def forecast_of(name: str, options: dict[str, Any], **changes: Any) -> Any:
    pipe = FAMILIES[name]()
    arguments = {**call_kwargs(name), **changes}
    return hasten.plan(pipe, {"bottleneck": options}, **arguments).techniques[0]


def test_low_steps_cost_less_and_the_sum_is_right():
    planned = forecast_of("sd3", {"low_until": 0.5, "min_pixels": 1}, num_inference_steps=10)
    forecast = planned.forecast
    low = {step.flops for step in forecast.steps if step.note == "low"}
    high = {step.flops for step in forecast.steps if step.note == ""}
    assert len(low) == len(high) == 1
    assert max(low) < min(high)
    assert forecast.baseline_flops == pytest.approx(10 * high.pop())
    assert planned.flops_ratio > 1
    assert set(forecast.facts["cost_of_full_step"]) == {"4x6"}


def test_an_empty_window_predicts_no_gain():
    assert forecast_of("sd3", {"low_until": 1.0, "high_first": 0.5, "min_pixels": 1}).flops_ratio == 1.0


def test_guidance_doubles_the_cost():
    options = {"low_until": 0.5, "min_pixels": 1}
    guided, plain = (forecast_of("sd3", options, guidance_scale=scale).forecast for scale in (4.0, 1.0))
    assert guided.baseline_flops == 2 * plain.baseline_flops


def test_a_low_last_step_is_pointed_out():
    assert "caution" in forecast_of("flux", {"low_until": 0.01, "min_pixels": 1}).forecast.facts
    assert "caution" not in forecast_of("flux", {"low_until": 0.5, "min_pixels": 1}).forecast.facts


def test_restart_is_compared_with_the_calls_own_steps():
    options = {"mode": "restart", "min_pixels": 1, "preset": "flux"}
    planned = forecast_of("flux", options, num_inference_steps=50)
    notes = [step.note for step in planned.forecast.steps]
    assert notes == ["stage 1"] * 6 + ["stage 2"] * 16 + ["stage 3"] * 5
    high = planned.forecast.steps[0].flops
    assert planned.forecast.baseline_flops == pytest.approx(50 * high)


def test_image_to_image_calls_start_late():
    pipe = FAMILIES["flux-img2img"]()
    arguments = {**call_kwargs("flux-img2img"), "num_inference_steps": 10, "strength": 0.5}
    plan = hasten.plan(pipe, {"bottleneck": {"low_until": 0.3, "min_pixels": 1}}, **arguments)
    assert len(plan.techniques[0].forecast.steps) == 5


def test_planning_touches_nothing():
    pipe = FAMILIES["wan"]()
    before = copy.deepcopy(vars(pipe.scheduler))
    forecast_of("wan", {"low_until": 0.5, "min_pixels": 1})
    hasten.plan(pipe, {"bottleneck": {"low_until": 0.5, "min_pixels": 1}}, **call_kwargs("wan"))
    after = vars(pipe.scheduler)
    assert before.keys() == after.keys()
    assert all(str(before[key]) == str(after[key]) for key in before)


def test_the_printed_plan_shows_sizes_and_says_what_the_ratio_is():
    pipe = FAMILIES["flux"]()
    text = str(hasten.plan(pipe, {"bottleneck": {"low_until": 0.5, "min_pixels": 1}}, **call_kwargs("flux")))
    for part in ("4x6", "8x12", "low", "fewer FLOPs", "text tokens"):
        assert part in text


def test_after_a_run_the_report_has_milliseconds_per_resolution():
    pipe = FAMILIES["flux"]()
    options = {"low_until": 0.5, "min_pixels": 1, "high_first": 1.0}
    with hasten.accelerate(pipe, {"bottleneck": options}) as acceleration:
        pipe(**call_kwargs("flux"))
        totals = {total.resolution: total for total in acceleration.report().totals}
    assert set(totals) == {(8, 12), (4, 6)}
    assert all(total.median_milliseconds > 0 for total in totals.values())


def test_text_tokens_come_from_the_arguments():
    target = Target.of(FAMILIES["sd3"]())
    from hasten._cost import text_tokens

    assert text_tokens(target, target.call_arguments(max_sequence_length=256)) == 256 + 77
    assert text_tokens(target, call_kwargs("sd3")) == 7
