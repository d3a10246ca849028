"""Presets: the files that are shipped, what a pipeline gets of them, and what is laid over them."""

from __future__ import annotations

from typing import Any

import pytest
from families import FAMILIES

import hasten
from hasten import _presets
from hasten._config import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_files_cover_every_kind_and_number_of_tokens(name: str) -> None:
    file = _presets._read(name)
    for kind in ("dit", "unet", "video", "next-scale"):
        ranges = [case.tokens for case in file.cases if case.kind == kind]
        assert [low for low, _ in ranges] == [0, *(high for _, high in ranges[:-1])]
        assert ranges[-1][1] is None
    for case in file.cases:
        hasten.Config.of(case.techniques)  # options are those of the techniques
        assert (case.measured is None) == (case.command is None) == (not case.families)
        assert case.tokens[0] > 512 or not case.techniques or case.kind == "next-scale"


def test_files_are_the_presets() -> None:
    assert {path.stem for path in _presets._FOLDER.glob("*.yaml")} == set(PRESETS)


def test_small_models_stay_plain_and_the_plan_says_so() -> None:
    pipe = FAMILIES["sd3"]()
    for name in PRESETS:
        plan = hasten.plan(pipe, name)
        assert plan.techniques == ()
        assert any(f"preset {name}: plain" in finding.message for finding in plan.findings)


def test_the_size_of_the_call_decides() -> None:
    pipe = FAMILIES["sd3"]()
    side = {"height": 1024, "width": 1024}
    plan = hasten.plan(pipe, "balanced", **side)
    both = ["bottleneck", "guidance_interval"]
    assert [technique.name for technique in plan.techniques] == both
    with hasten.accelerate(pipe, "balanced", **side) as accel:
        assert [technique.name for technique in accel.plan.techniques] == both
        assert accel.plan.estimate is not None
        assert max(step.size for step in accel.plan.estimate.steps) == max(
            step.size
            for step in plan.estimate.steps  # type: ignore[union-attr]
        )


def test_what_was_not_measured_says_so() -> None:
    (preset, *_) = hasten.presets(FAMILIES["flux"](), height=1024, width=1024)
    assert not preset.measured
    assert "family flux was not measured at" in preset.basis


def test_a_technique_that_the_model_cannot_have_is_left_out() -> None:
    found = {preset.name: preset for preset in hasten.presets(FAMILIES["flux"](), height=1024, width=1024)}
    assert "guidance-distilled" in found["fast"].left_out["guidance_interval"]
    assert [entry.name for entry in found["fast"].config.techniques] == ["bottleneck"]


def test_own_options_win_and_own_techniques_follow() -> None:
    config = {"preset": "balanced", "techniques": {"guidance_interval": {}, "bottleneck": {"delta": 0.1}}}
    plan = hasten.plan(FAMILIES["sd3"](), config, height=1024, width=1024)
    assert [technique.name for technique in plan.techniques] == ["bottleneck", "guidance_interval"]
    assert plan.techniques[0].options["delta"] == 0.1
    assert plan.techniques[0].options["high_first"] == 1.0


@pytest.mark.parametrize("value", ["fats", {"preset": "fats"}, {"schema": 1, "preset": "fats"}])
def test_an_unknown_name_is_answered_with_the_known_ones(value: Any) -> None:
    with pytest.raises(hasten.ConfigError, match="fast"):
        hasten.Config.of(value)


def test_the_command_line_is_laid_over_a_preset() -> None:
    config = hasten.apply_overrides(None, sets=["bottleneck.delta=0.1"], preset="fast")
    assert config.preset == "fast"
    assert hasten.Config.of(config.to_dict()) == config
    with pytest.raises(hasten.ConfigError, match="not enabled"):
        hasten.apply_overrides(None, sets=["bottleneck.delta=0.1"])
