"""The forecast of a whole call: what is predicted for all techniques together is what a run is counted to take."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hasten
from hasten import _timings
from hasten._adapters.base import LatentSize
from hasten._estimate import Estimate, Seconds
from hasten._technique import StepForecast
from hasten.eval.efficiency import measure_flops

PROMPT = "a large red circle on the left on a white background"
LOW = {"bottleneck": {"high_first": 1.0, "low_until": 0.5, "min_pixels": 1}}
HIGH = {"bottleneck": {**LOW["bottleneck"], "low_until": 0.8}}
SPARSE = {
    "rettention": {"min_tokens": 128, "warmup": 1, "keep_ratio": 0.125, "period": 4, "kernel": "gather"}
}
DIT = {"height": 128, "width": 128, "guidance_scale": 3.0, "max_sequence_length": 0}
CASES = {
    "bottleneck": ("mini/t2i-dit", LOW, {**DIT, "num_inference_steps": 4}),
    "rettention": ("mini/t2i-dit", SPARSE, {**DIT, "num_inference_steps": 4}),
    "both": ("mini/t2i-dit", {**HIGH, **SPARSE}, {**DIT, "num_inference_steps": 6}),
    "hack": ("mini/var", {"hack": {}}, {}),
    "aptp": (
        "mini/t2i-unet",
        {"aptp": {"route": "static", "expert": 0}},
        {"num_inference_steps": 2, "guidance_scale": 1.5},
    ),
    "video": ("mini/t2v-unet", LOW, {"num_inference_steps": 2}),
}


@pytest.fixture(scope="module")
def model() -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            loaded[name] = hasten.load(name)
            loaded[name].set_progress_bar_config(disable=True)
        return loaded[name]

    return load


@pytest.mark.parametrize("case", CASES)
def test_predicted_operations_are_those_counted(case: str, model: Any) -> None:
    name, config, call = CASES[case]
    pipe = model(name)
    state = torch.get_rng_state()
    with hasten.accelerate(pipe, config) as accel:
        if case == "hack":
            pipe(prompt=PROMPT, **call)  # the first call is preceded by a calibrating one
        counted = measure_flops(lambda: pipe(prompt=PROMPT, **call))
        if case == "hack":
            predicted = accel._attachment.estimate(accel._attachment.target.call_arguments(prompt=PROMPT))
    if case != "hack":
        torch.set_rng_state(state)
        predicted = hasten.plan(pipe, config, prompt=PROMPT, **call).estimate
        assert torch.equal(torch.get_rng_state(), state)  # planning draws no random number
    assert predicted is not None
    assert not counted.uncounted
    assert predicted.flops == pytest.approx(counted.total, rel=0.02)
    assert predicted.flops < predicted.plain_flops


def test_techniques_are_priced_at_the_size_they_see(model: Any) -> None:
    name, config, call = CASES["both"]
    for techniques in (config, dict(reversed(config.items()))):
        plan = hasten.plan(model(name), techniques, **call)
        assert plan.estimate is not None
        steps = plan.estimate.steps
        assert {step.size for step in steps} == {(16, 16), (32, 32)}
        # 64 tokens are below min_tokens, and the first large step has no statistics yet.
        large = [step.note for step in steps if step.size == (32, 32)]
        assert large[0] == "refresh"
        assert "sparse" in large
        assert {step.note for step in steps if step.size == (16, 16)} == {"low"}
        forecasts = {technique.name: technique.forecast for technique in plan.techniques}
        assert forecasts["rettention"].steps == steps  # type: ignore[union-attr]
        assert [step.note for step in forecasts["bottleneck"].steps if step.note] == [  # type: ignore[union-attr]
            step.note for step in steps if step.note == "low"
        ]


def test_a_technique_without_effect_beside_another_is_told(model: Any) -> None:
    config = {"bottleneck": {**LOW["bottleneck"], "low_until": 0.05}, **SPARSE}
    plan = hasten.plan(model("mini/t2i-dit"), config, num_inference_steps=4, **DIT)
    assert any(
        "rettention: with the other techniques, it saves nothing" in finding.message
        for finding in plan.findings
    )


def _known(plain: list[float], own: list[float], seconds: Seconds | None = None) -> Estimate:
    steps = tuple(StepForecast(i, 1 - i / len(own), (8, 8), flops) for i, flops in enumerate(own))
    usual = tuple(StepForecast(i, 1 - i / len(plain), (8, 8), flops) for i, flops in enumerate(plain))
    return Estimate(steps, usual, (), (), seconds, "forwards at 8x8")


def test_the_bound_is_what_remains() -> None:
    known = _known([4.0] * 4, [1.0, 1.0, 4.0, 4.0])
    assert known.flops_ratio == pytest.approx(1.6)
    assert known.bound == pytest.approx(2.0)
    assert [step.index for step in known.remaining] == [2, 3]
    assert known.worth
    assert not _known([4.0] * 4, [4.0, 4.0, 4.0, 3.5]).worth
    assert _known([4.0] * 4, [4.0] * 4).bound is None


def test_seconds_decide_what_is_worth_it_where_they_are_known() -> None:
    slow = Seconds(1.0, 0.95, (0.2,) * 4, 0.15, "here")
    assert not _known([4.0] * 4, [1.0, 1.0, 4.0, 4.0], slow).worth


def test_plan_fits_into_80_columns_and_names_the_bound(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(_timings, "_known", {})
    name, config, call = CASES["both"]
    text = str(hasten.plan(model(name), config, **call))
    assert max(map(len, text.splitlines())) <= 80
    whole = " ".join(text.split())
    assert text.count("fewer FLOPs (FLOPs, not wall-clock)") == 1
    assert "steps are cheaper; the other" in whole
    assert "the decoder remain: at most" in whole
    assert "seconds: not known" in whole


def test_calls_leave_times_for_later_plans(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    monkeypatch.setattr(_timings, "_known", {})
    name, config, call = CASES["bottleneck"]
    pipe = model(name)
    for techniques in ([], config):
        with hasten.accelerate(pipe, techniques):
            pipe(prompt=PROMPT, **call)
    (file,) = (tmp_path / "timings").iterdir()
    monkeypatch.setattr(_timings, "_known", {})  # another process
    plan = hasten.plan(pipe, config, prompt=PROMPT, **call)
    assert plan.estimate is not None
    seconds = plan.estimate.seconds
    assert seconds is not None
    assert seconds.plain > seconds.outside > 0
    assert len(seconds.steps) == 4
    assert json.loads(plan.to_json())["estimate"]["seconds"]["source"] in " ".join(str(plan).split())
    file.write_text(file.read_text().replace('"source"', '"sauce"'))  # damaged: as if it had never run
    monkeypatch.setattr(_timings, "_known", {})
    assert hasten.plan(pipe, config, **call).estimate.seconds is None  # type: ignore[union-attr]


def test_nothing_is_written_where_the_user_wants_no_cache(monkeypatch: Any) -> None:
    monkeypatch.setenv("HASTEN_CACHE", "")
    assert _timings.cache_folder() is None
    monkeypatch.delenv("HASTEN_CACHE")
    assert _timings.cache_folder() is not None
    assert os.environ.get("HASTEN_CACHE") is None


def test_a_read_only_cache_costs_no_picture(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "timings").write_text("a file where a folder should be")
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    monkeypatch.setattr(_timings, "_known", {})
    name, config, call = CASES["bottleneck"]
    with hasten.accelerate(model(name), config):
        assert model(name)(prompt=PROMPT, **{**call, "num_inference_steps": 2}).images


def test_frames_of_a_unet_are_pictures_of_their_own() -> None:
    from hasten._flops import Tokens

    assert Tokens.of(LatentSize(4, 6, 5), 2, 7) == Tokens(30, 7, 5)
