"""Every family: all self-attention of the picture is seen, nothing else, and nothing stays behind."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline, call_kwargs

import hasten
from hasten._attention import attention_layers
from hasten._fingerprint import fingerprint
from hasten._target import Target
from hasten.extend import AttentionTokens
from hasten.pipelines.adapters import find

REACHED = (
    "pixart-alpha",
    "pixart-sigma",
    "hunyuan-dit",
    "cogvideox-sincos",
    "cogvideox-rope",
    "sd3",
    "flux",
    "flux-kontext",
    "wan",
    "wan-i2v",
    "wan22-a14b",
    "wan22-ti2v",
    "hunyuan-video",
    "ltx",
    "ltx-i2v",
    "qwen-image",
    "sd15",
    "sdxl",
    "chroma",
    "flux2",
    "z-image",
    "lumina2",
    "aura-flow",
    "ltx2",
    "hunyuan-video-1.5",
    "animatediff",
    "text-to-video",
    "flux-img2img",
    "sd15-img2img",
    "wan22-ti2v-i2v",
    "cogvideox-1.5",
)
OPTIONS: dict[str, Any] = {"keep_ratio": 0.3, "warmup": 1, "min_tokens": 4}
SELF = dict.fromkeys(("sdxl", "sd15", "sd15-img2img", "hunyuan-dit", "animatediff", "text-to-video"), 4)
"""Self-attention layers over the picture, where they are not 2."""


SHORT = ("wan22-a14b", "sd15-img2img")
"""Calls with too few steps for a sparse one: two experts share three, or a given picture leaves two."""
OTHER = r"attn2|refiner|embedder|audio|motion_modules|transformer_in|temp_attentions"
"""Layers that attend to something else: the text, sound, or the same place in other frames."""


@pytest.fixture(scope="module", params=REACHED)
def family(request):
    name = request.param
    pipe = FAMILIES[name]()
    return name, pipe, baseline(pipe, name)


def test_sparse_steps_reach_every_layer_once(family):
    name, pipe, expected = family
    before = fingerprint(pipe)
    with hasten.accelerate(pipe, {"rettention": OPTIONS}) as acceleration:
        output = baseline(pipe, name)
        report = acceleration.report()
    facts = [step.facts["rettention"] for step in report.steps]
    count = SELF.get(name, 2)
    assert all(sum(fact["layers"].values()) == count for fact in facts)
    assert facts[0]["layers"] == {"dense": count}
    phases = [next(iter(fact["layers"])) for fact in facts]
    assert "refresh" in phases
    sparse = [fact for fact, phase in zip(facts, phases) if phase == "sparse"]
    if name not in SHORT:
        assert sparse
        assert not torch.equal(output, expected)
    assert all(0.2 < fact["density"] < 0.97 for fact in sparse)
    assert torch.isfinite(output).all()
    assert not before.diff(fingerprint(pipe))
    assert torch.equal(baseline(pipe, name), expected)


def test_keeping_everything_is_bit_identical(family):
    name, pipe, expected = family
    with hasten.accelerate(pipe, {"rettention": {**OPTIONS, "keep_ratio": 1.0, "warmup": 0}}):
        assert torch.equal(baseline(pipe, name), expected)


def test_refreshing_every_step_is_bit_identical(family):
    name, pipe, expected = family
    with hasten.accelerate(pipe, {"rettention": {**OPTIONS, "warmup": 0, "period": 1}}) as acceleration:
        assert torch.equal(baseline(pipe, name), expected)
        assert {next(iter(s.facts["rettention"]["layers"])) for s in acceleration.report().steps} == {
            "refresh"
        }


def test_density_and_memory_are_those_planned(family):
    name, pipe, _ = family
    plan = hasten.plan(pipe, {"rettention": OPTIONS}, **call_kwargs(name))
    forecast = plan.techniques[0].forecast
    with hasten.accelerate(pipe, {"rettention": OPTIONS}) as acceleration:
        baseline(pipe, name)
        steps = acceleration.report().steps
    if forecast is None:  # the size is decided during the call
        assert name == "wan-i2v"
        return
    found = [
        next(iter(step.facts["rettention"]["layers"]))
        for step in steps
        if step.branch in ("both", "cond", "only")
    ]
    planned = [step.note or "dense" for step in forecast.steps]
    assert found == planned or name == "wan22-a14b"
    densities = {
        s.facts["rettention"]["density"] for s in steps if "sparse" in s.facts["rettention"]["layers"]
    }
    if "image" not in call_kwargs(name):
        assert all(
            density == pytest.approx(forecast.facts["true_density"], abs=1e-4) for density in densities
        )
        memory = max(step.facts["rettention"].get("cache_bytes", 0) for step in steps)
        assert memory == forecast.facts["cache_bytes"] or name == "wan22-a14b"
    by_phase = {step.note or "dense": step.flops for step in forecast.steps}
    each = forecast.baseline_flops / len(forecast.steps)
    assert by_phase["dense"] == pytest.approx(each)
    assert by_phase["refresh"] > each
    assert by_phase.get("sparse", 0.0) < each


def test_layers_are_self_attention_only():
    for name in REACHED:
        pipe = FAMILIES[name]()
        claimed = hasten.plan(pipe, {"rettention": OPTIONS}).techniques[0].claims[0].modules
        others = set(attention_layers(Target.of(pipe))) - set(claimed or ())
        assert all(re.search(OTHER, layer) for layer in others), others


def test_families_that_can_are_all_here() -> None:
    able = {
        name
        for name, build in FAMILIES.items()
        if (found := find(build())) is not None and found.capability(AttentionTokens) is not None
    }
    assert able == {*REACHED}


@pytest.mark.parametrize("name", ["sana"])
def test_a_family_without_a_token_layout_is_refused(name):
    with pytest.raises(
        hasten.UnsupportedError, match="needs AttentionTokens, and its self-attention is linear"
    ):
        hasten.accelerate(FAMILIES[name](), {"rettention": {}})


@pytest.mark.parametrize("name", ["cogvideox-rope", "flux"])
def test_half_precision_keeps_its_type(name):
    pipe = FAMILIES[name]().to(torch.bfloat16)
    given = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in call_kwargs(name).items()}
    with hasten.accelerate(pipe, {"rettention": {**OPTIONS, "cache_dtype": "float8"}}):
        output = pipe(**given, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()


def test_a_call_that_cannot_work_is_told_in_the_plan_and_refused_in_its_first_step():
    pipe = FAMILIES["pixart-sigma"]()
    options = {**OPTIONS, "warmup": 2, "mask": "block_exact_budget", "tile": 20}
    plan = hasten.plan(pipe, {"rettention": options}, **call_kwargs("pixart-sigma"))
    message = "a window of 7 positions"
    assert message in plan.techniques[0].forecast.facts["this_call_will_fail"]
    with hasten.accelerate(pipe, {"rettention": options}) as acceleration:
        with pytest.raises(hasten.ConfigError, match=message):
            baseline(pipe, "pixart-sigma")
        assert len(acceleration.report().steps) == 1


def test_hidden_text_neither_changes_the_picture_nor_stops_a_sparse_step() -> None:
    pipe, given = FAMILIES["chroma"](), call_kwargs("chroma")
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    given = {**given, **{name: given[name].clone() for name in names if name in given}}
    for name in names:
        if name in given:
            given[name][:, -2:] = False
    changed = {**given, "prompt_embeds": given["prompt_embeds"].clone()}
    changed["prompt_embeds"][:, -2:] += 1.0

    def call(arguments: dict[str, Any]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(**arguments, generator=generator, return_dict=False)[0]

    with hasten.accelerate(pipe, {"rettention": {**OPTIONS, "warmup": 0}}) as acceleration:
        output = call(given)
        assert any("sparse" in step.facts["rettention"]["layers"] for step in acceleration.report().steps)
        assert torch.equal(call(changed), output)


def test_a_mask_of_numbers_is_a_bias_that_sparse_steps_keep_to() -> None:
    pipe, given = FAMILIES["chroma"](), call_kwargs("chroma")
    numbers = {name: value.float() for name, value in given.items() if name.endswith("mask")}
    for value in numbers.values():
        value[:, -2:] = 0.0
    call = {**given, **numbers}
    options = {"rettention": {**OPTIONS, "warmup": 0}}
    assert {finding.severity for finding in hasten.plan(pipe, options, **call).findings} <= {"note"}
    with hasten.accelerate(pipe, options) as acceleration:
        output = pipe(**call, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
        steps = acceleration.report().steps
    assert output.isfinite().all()
    assert any("sparse" in step.facts["rettention"]["layers"] for step in steps)


def test_a_wrong_patch_is_told_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FAMILIES["z-image"]()
    monkeypatch.setattr(type(find(pipe).capability(AttentionTokens)), "patch", lambda *_: (1, 1))
    side = {"height": 1024, "width": 1024}
    found = hasten.plan(pipe, {"rettention": OPTIONS}, **{**call_kwargs("z-image"), **side}).findings
    assert any(f.severity == "error" and "correct its 'patch'" in f.message for f in found)
