"""Compares what a plan says of a call with what the call does: the one rule that all tests of it share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from families import FAMILIES, seeded, variant

import hasten

__all__ = ["TECHNIQUES", "Outcome", "agree", "subject"]

TECHNIQUES: dict[str, dict[str, Any]] = {
    "bottleneck": {"bottleneck": {"min_pixels": 1}},
    "bottleneck, nearly all low": {"bottleneck": {"min_pixels": 1, "low_until": 0.01, "high_first": 1.0}},
    "bottleneck, restart": {
        "bottleneck": {
            "mode": "restart",
            "min_pixels": 1,
            "stages": [
                {"steps": 2},
                {"steps": 4, "scale": 0.5, "strength": 0.75},
                {"steps": 4, "strength": 0.5},
            ],
        }
    },
    "rettention": {"rettention": {"min_tokens": 1, "keep_ratio": 0.3}},
    "rettention, sparse early": {
        "rettention": {"min_tokens": 1, "keep_ratio": 0.3, "warmup": 0, "period": 2, "mask": "reference"}
    },
    "video_infinity": {"video_infinity": {"clips": 2, "mode": "full"}},
    "video_infinity, own scope": {"video_infinity": {"clips": 2}},
}
"""Configurations by what a test calls them."""


def subject(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of a family or variant and the arguments of a cheap call."""
    return (FAMILIES[name](), seeded(name)) if name in FAMILIES else variant(name)


@dataclass(frozen=True)
class Outcome:
    """What came of a call: its first output, or its error."""

    value: Any = None
    error: BaseException | None = None

    @classmethod
    def of(cls, pipe: Any, arguments: Mapping[str, Any]) -> Outcome:
        """The outcome of a call, its generator in a fixed state."""
        given = dict(arguments)
        if given.get("generator") is not None:
            given["generator"] = torch.Generator().manual_seed(0)
        try:
            return cls(value=pipe(**given, return_dict=False)[0])
        except Exception as error:
            return cls(error=error)

    @property
    def finite(self) -> bool:
        """Whether there is an output without NaN and infinity."""
        return isinstance(self.value, torch.Tensor) and bool(self.value.isfinite().all())


def agree(pipe: Any, arguments: Mapping[str, Any], config: Mapping[str, Any], stock: Outcome) -> str:
    """Require that a plan and a call fit together; the answer is a word for what happened.

    A plan that refuses raises a :class:`hasten.HastenError`, as accelerating does. A plan with an error has a call that
    raises one. Any other call ends as the stock one does: with an output of the same shape, or with the same exception.
    What the plan says of steps, and of a technique without effect, is what the report shows.
    """
    try:
        plan = hasten.plan(pipe, config, **arguments)
    except hasten.HastenError as refusal:
        _require_refused(pipe, arguments, config, refusal)
        return "refused"
    errors = [finding.message for finding in plan.findings if finding.severity == "error"]
    warnings = [finding.message for finding in plan.findings if finding.severity == "warning"]
    with hasten.accelerate(pipe, config) as acceleration:
        found = Outcome.of(pipe, arguments)
        report = acceleration.report()
    if errors:
        assert isinstance(found.error, hasten.HastenError), f"told {errors}, got {found}"
        return "told"
    if stock.error is not None:
        assert type(found.error) is type(stock.error), f"stock {stock.error!r}, found {found}"
        assert str(found.error) == str(stock.error)
        return "as stock"
    if not _finite(stock.value):
        return "stock is not finite"
    assert found.error is None, f"no error in the plan, and the call raised {found.error!r}"
    assert found.value.shape == stock.value.shape
    assert _finite(found.value)
    _require_forecast(plan, report)
    _require_effect(next(iter(config)), report, warnings)
    return "ran"


def _finite(value: Any) -> bool:
    return bool(value.isfinite().all())


def _require_refused(
    pipe: Any, arguments: Mapping[str, Any], config: Mapping[str, Any], refusal: hasten.HastenError
) -> None:
    """What refuses the pipeline refuses to accelerate it; what refuses a size fails with it, if only as stock."""
    try:
        acceleration = hasten.accelerate(pipe, config)
    except type(refusal):
        return
    with acceleration:
        assert Outcome.of(pipe, arguments).error is not None, refusal


def _require_forecast(plan: Any, report: Any) -> None:
    """Levels and sizes of the forecast are those of the run."""
    forecast = plan.techniques[0].forecast
    if forecast is None or not report.steps:
        return
    rows: list[tuple[float, tuple[int, int]]] = []
    last = None
    for step in report.steps:
        key = (step.run, step.index)
        if key != last:
            rows.append((step.level, step.resolution[-2:]))
        last = key
    assert [size for _, size in rows] == [step.size for step in forecast.steps]
    for (level, _), step in zip(rows, forecast.steps, strict=True):
        assert abs(level - step.level) < 2e-3


def _require_effect(technique: str, report: Any, warnings: list[str]) -> None:
    """The last forward is at full resolution; a run without effect is told of before and after."""
    low = [step.resolution[-2:] != step.size[-2:] for step in report.steps]
    assert not any(low[-1:])
    if technique == "bottleneck" and report.steps and "stage" not in report.steps[0].facts["bottleneck"]:
        idle = not any(low)
    elif technique == "rettention" and report.steps:
        idle = not any("sparse" in step.facts["rettention"]["layers"] for step in report.steps)
    else:
        idle = not report.steps
    assert bool(warnings_about_effect(warnings)) == idle, f"idle: {idle}, warned: {warnings}"
    # Random latents have no spectrum of pictures, which is told.
    notes = [note for note in report.notes if "spectrum of the latents" not in note]
    assert bool(notes) == idle, report.notes


def warnings_about_effect(warnings: list[str]) -> list[str]:
    """Those that say that a technique will do nothing."""
    told = ("no step of this call", "no attention of this call", "no steps are left")
    return [warning for warning in warnings if any(words in warning for words in told)]
