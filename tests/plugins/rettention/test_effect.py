"""A run in which nothing becomes sparse is refused, or told of in plan and report, with the cause."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
from families import FAMILIES, baseline, call_kwargs

import hasten

EARLY: dict[str, Any] = {"min_tokens": 1, "keep_ratio": 0.3, "warmup": 0}


@pytest.mark.parametrize(
    ("name", "options", "steps", "cause"),
    [
        ("sd15", {"warmup": 3}, 3, "of its 3 steps 3 are warm-up and 0 refresh"),
        ("sd15", {"period": 1}, 4, "of its 4 steps 0 are warm-up and 4 refresh"),
        ("pixart-sigma", {"keep_ratio": 1.0}, 4, "keep_ratio=1.0 keeps every key"),
        ("pixart-sigma", {"min_tokens": 1000}, 4, "no layer has min_tokens=1000 tokens"),
        ("wan22-a14b", {"warmup": 1}, 3, "of its 3 steps 1 are warm-up and 2 refresh"),
    ],
)
def test_no_effect_is_told_before_and_after(
    name: str, options: dict[str, Any], steps: int, cause: str
) -> None:
    pipe, config = FAMILIES[name](), {"rettention": {**EARLY, **options}}
    plan = hasten.plan(pipe, config, **{**call_kwargs(name), "num_inference_steps": steps})
    (warning,) = [finding.message for finding in plan.findings if finding.severity == "warning"]
    assert warning.startswith("rettention: no attention of this call becomes sparse: ")
    assert cause in warning
    with hasten.accelerate(pipe, config) as acceleration:
        baseline(pipe, name, num_inference_steps=steps)
        (note,) = acceleration.report().notes
    assert note.startswith("rettention: no attention was sparse")


def test_an_effect_is_not_commented_on() -> None:
    pipe, config = FAMILIES["pixart-sigma"](), {"rettention": EARLY}
    plan = hasten.plan(pipe, config, **call_kwargs("pixart-sigma"))
    assert {finding.severity for finding in plan.findings} == {"note"}
    with hasten.accelerate(pipe, config) as acceleration:
        baseline(pipe, "pixart-sigma")
        assert acceleration.report().notes == ()


@pytest.mark.parametrize("solver", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
def test_rising_levels_are_refused(solver: str) -> None:
    pipe = FAMILIES["sd15"]()
    pipe.scheduler = getattr(diffusers, solver).from_config(pipe.scheduler.config)
    for technique in ("rettention", "bottleneck"):
        with pytest.raises(hasten.UnsupportedError, match=rf"{solver} goes from clean to noisy"):
            hasten.accelerate(pipe, [technique])
