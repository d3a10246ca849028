"""The last step of a run is at full resolution, whatever the options, the solver and the number of steps."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
from families import FAMILIES, baseline

import hasten

NEARLY_ALL_LOW = {"bottleneck": {"min_pixels": 1, "low_until": 0.001, "high_first": 1.0}}


def phases(pipe: Any, name: str, **changes: Any) -> list[str]:
    with hasten.accelerate(pipe, NEARLY_ALL_LOW) as acceleration:
        baseline(pipe, name, **changes)
        report = acceleration.report()
    assert not report.notes or set(phases_of(report)) == {"high"}
    return phases_of(report)


def phases_of(report: Any) -> list[str]:
    return [step.facts["bottleneck"]["phase"] for step in report.steps]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps(steps: int) -> None:
    found = phases(FAMILIES["flux"](), "flux", num_inference_steps=steps)
    assert found == ["low"] * (steps - 1) + ["high"]


def test_both_branches_of_the_last_step() -> None:
    assert phases(FAMILIES["wan"](), "wan", num_inference_steps=2) == ["low"] * 2 + ["high"] * 2


@pytest.mark.parametrize("solver", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_solvers_that_ask_twice_a_step(solver: str) -> None:
    pipe = FAMILIES["sd15"]()
    pipe.scheduler = getattr(diffusers, solver).from_config(pipe.scheduler.config)
    found = phases(pipe, "sd15", num_inference_steps=3)
    assert len(found) == 5
    last = (
        2 if solver == "HeunDiscreteScheduler" else 1
    )  # Heun's corrector and the next predictor are at one level
    assert found == ["low"] * (5 - last) + ["high"] * last


def test_a_run_that_stops_before_the_end_of_its_schedule() -> None:
    found = phases(FAMILIES["sdxl"](), "sdxl", num_inference_steps=8, denoising_end=0.5)
    assert found == ["low"] * 3 + ["high"]


def test_a_run_that_the_user_ends_early_is_told_of() -> None:
    pipe = FAMILIES["flux"]()

    def stop(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        pipe._interrupt = True
        return kwargs

    with hasten.accelerate(pipe, NEARLY_ALL_LOW) as acceleration:
        baseline(pipe, "flux", callback_on_step_end=stop)
        (note,) = acceleration.report().notes
    assert "the last forward was at low resolution" in note
    assert note in " ".join(str(acceleration.report()).split())


def test_one_step_has_no_effect_and_is_told_of() -> None:
    pipe = FAMILIES["flux"]()
    (finding,) = [
        finding
        for finding in hasten.plan(pipe, NEARLY_ALL_LOW, num_inference_steps=1, height=16, width=24).findings
        if finding.severity == "warning"
    ]
    assert "no step of this call runs at low resolution" in finding.message
    with hasten.accelerate(pipe, NEARLY_ALL_LOW) as acceleration:
        baseline(pipe, "flux", num_inference_steps=1)
        assert acceleration.report().notes == ("bottleneck: no step ran at low resolution",)
