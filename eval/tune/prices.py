"""What a setting will take of the plain steps' work, known from its plan before any picture is spent on it."""

from __future__ import annotations

from dataclasses import dataclass

import hasten
from hasten.commands import Job, solving_with
from hasten.eval.tune.setting import Setting
from hasten.extend import HastenError, Pipeline, Plan

__all__ = ["Price", "price_of", "share_of_plan"]


@dataclass(frozen=True)
class Price:
    """Of a setting: why it can't run (empty if it can), and its share of the plain steps' FLOPs."""

    refusal: str
    share: float = 1.0


def price_of(pipe: Pipeline, setting: Setting, job: Job) -> Price:
    """Plan a setting without running it."""
    if setting.plain:
        return Price("")
    assert setting.config is not None
    try:
        with solving_with(pipe, setting.solver):
            plan = hasten.plan(pipe, setting.config, **setting.arm.job(job).call)
    except HastenError as error:
        return Price(str(error))
    errors = [finding.message for finding in plan.findings if finding.severity == "error"]
    return Price("; ".join(errors), share_of_plan(plan))


def share_of_plan(plan: Plan) -> float:
    """Predicted FLOPs of the denoiser with all techniques, as a share of those without."""
    share = 1.0
    for technique in plan.techniques:
        share /= technique.flops_ratio or 1.0
    return share
