"""Plans and reports: what they say, in text and JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

import hasten
from hasten import Claim, Finding, Forecast, StepForecast
from hasten._fingerprint import fingerprint


class Predicts(hasten.Technique[hasten.TechniqueConfig]):
    name = "predicts"
    summary = "predicts"
    config_class = hasten.TechniqueConfig
    severity = "warning"

    def claims(self, target: Any) -> list[Claim]:
        return [Claim("tokens.shape", hasten.Access.WRITES, frozenset({"transformer"}))]

    def check(self, target: Any) -> list[Finding]:
        return [Finding(self.severity, "the [low] size is small")]  # type: ignore[arg-type]

    def forecast(self, target: Any, arguments: Any, before: Any) -> Forecast:
        steps = arguments["num_inference_steps"]
        row = (StepForecast(i, 1 - i / steps, (4, 6), 2e12, "low") for i in range(steps))
        return Forecast(tuple(row), 8e12 * steps, {"height": arguments["height"]})

    def attach(self, target: Any, seams: Any) -> None:
        seams.denoiser(lambda call, proceed: proceed(call))


def test_plan_touches_nothing_and_tells_all(flux: Any, register: Any) -> None:
    register(Predicts)
    before = fingerprint(flux)
    plan = hasten.plan(flux, ["predicts", "scale"], num_inference_steps=3, height=128)
    assert fingerprint(flux) == before
    text = str(plan)
    for part in (
        "FluxPipeline (family flux)",
        "1. predicts",
        "2. scale  factor=0.5",
        "writes tokens.shape, 1 modules",
        "4x6",
        "x fewer FLOPs (FLOPs, not wall-clock)",
        "not in these figures: scale, which has no forecast",
        "height=128",
        "untested: no combination test covers predicts with scale",
        "warning: predicts: the [low] size is small",
    ):
        assert part in text
    plain = json.loads(plan.to_json())
    assert plain["techniques"][0]["forecast"]["flops_ratio"] == 4
    assert plain["techniques"][0]["claims"][0]["modules"] == ["transformer"]
    assert plain["untested"] == [["predicts", "scale"]]


def test_forecast_uses_the_pipelines_defaults(flux: Any, register: Any) -> None:
    register(Predicts)
    assert len(hasten.plan(flux, ["predicts"]).techniques[0].forecast.steps) == 28  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="num_steps"):
        hasten.plan(flux, ["predicts"], num_steps=3)


def test_attached_plan_says_what_is_patched(flux: Any) -> None:
    with hasten.accelerate(flux, ["scale", "count", "seen"]) as accel:
        assert accel.plan.patches == (
            "denoiser: scale > count",
            "attention: seen",
            "FluxTransformer2DModel.counted: count",
        )
        assert "patched, from the outside in:\n  denoiser: scale > count" in str(accel.plan)


def test_errors_of_a_check_refuse(flux: Any, register: Any) -> None:
    class Refuses(Predicts):
        severity = "error"

    register(Refuses)
    with pytest.raises(
        hasten.UnsupportedError, match=r"predicts refuses this FluxPipeline: the \[low\] size"
    ):
        hasten.plan(flux, ["predicts"])


def test_missing_capability_is_named(flux: Any, register: Any) -> None:
    class Wings:
        pass

    class Needs(Predicts):
        requires = (Wings,)

    register(Needs)
    with pytest.raises(
        hasten.UnsupportedError, match=r"FluxPipeline: .*family 'flux' has no Wings.*Write a sub"
    ):
        hasten.plan(flux, ["predicts"])


def test_unknown_family_says_what_to_write() -> None:
    class OwnPipeline:
        pass

    with pytest.raises(
        hasten.UnsupportedError, match=r"no adapter describes OwnPipeline.*hasten_register_adapters"
    ):
        hasten.plan(OwnPipeline(), ["scale"])


def test_report(flux: Any, run: Any) -> None:
    with hasten.accelerate(flux, {"scale": {"factor": 1.0}}) as accel:
        assert "no run yet" in str(accel.report())
        run(flux, "flux", num_inference_steps=3)
        report = accel.report()
    assert [step.index for step in report.steps] == [0, 1, 2]
    assert [step.level for step in report.steps] == sorted(
        (step.level for step in report.steps), reverse=True
    )
    assert {step.branch for step in report.steps} == {"only"}
    assert {step.resolution for step in report.steps} == {(8, 12)}
    assert all(step.milliseconds > 0 for step in report.steps)
    (total,) = report.totals
    assert (total.resolution, total.count) == ((8, 12), 3)
    assert total.milliseconds == pytest.approx(sum(step.milliseconds for step in report.steps))
    plain = json.loads(report.to_json())
    assert plain["steps"][1]["facts"] == {"scale": {"factor": 1.0}}
    assert plain["totals"][0]["count"] == 3
    assert "scale: factor=1" in str(report)
    assert "8x12" in str(report)


def test_skipped_forward_has_no_resolution(flux: Any, run: Any, register: Any) -> None:
    class Reuses(Predicts):
        name = "reuses"

        def attach(self, target: Any, seams: Any) -> None:
            def handle(call: Any, proceed: Any) -> Any:
                state = call.run.state("reuses")
                return state["last"] if "last" in state else state.setdefault("last", proceed(call))

            seams.denoiser(handle)

    register(Reuses)
    with hasten.accelerate(flux, ["reuses"]) as accel:
        run(flux, "flux")
    assert [step.resolution for step in accel.report().steps] == [(8, 12), None]
    assert "not computed" in str(accel.report())
