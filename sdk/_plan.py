"""The plan: the checked effect of accelerating a pipeline, without changing it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hasten._adapters.base import LatentLayout
from hasten._config import Config
from hasten._conflicts import check_claims, untested_pairs
from hasten._enabled import Enabled
from hasten._errors import UnsupportedError
from hasten._estimate import Estimate, estimate, forecasts
from hasten._plugins import host
from hasten._presets import with_preset
from hasten._step_caches import refuse_step_caches
from hasten._target import Target
from hasten._technique import Finding
from hasten._timesteps import nothing_to_run, refused_steps
from hasten._unverified import unverified_note

if TYPE_CHECKING:
    from hasten._claims import Claim
    from hasten._technique import Forecast

__all__ = ["Plan", "PlannedTechnique", "make_plan"]


@dataclass(frozen=True)
class PlannedTechnique:
    """One technique of a plan: its options, its claims and its forecast for one pipeline call.

    The forecast includes the techniques evaluated before it: first those that change the steps, then those that
    change sizes, then the others in the listed order. :attr:`Plan.estimate` is for all techniques together.
    """

    name: str
    options: Mapping[str, Any]
    claims: tuple[Claim, ...]
    forecast: Forecast | None = None

    @property
    def flops_ratio(self) -> float | None:
        """Predicted FLOPs of the denoiser without techniques over those of :attr:`forecast`. No wall-clock time."""
        if self.forecast is None:
            return None
        with_it = sum(step.flops for step in self.forecast.steps)
        return self.forecast.baseline_flops / with_it if with_it else None


@dataclass(frozen=True)
class Plan:
    """Techniques, findings and forecasts for a pipeline.

    Args:
        pipeline: class name of the pipeline.
        family: family its adapter describes.
        techniques: outermost first.
        findings: warnings and notes of the techniques and of plugins; an error here means that this call will fail,
            while other calls may work.
        untested: pairs of techniques without a recorded combination test.
        patches: seams and attributes in use, from the outside in; known once attached.
        device: where the pipeline computes.
        dtype: number format of its denoiser.
        estimate: cost of the call with all techniques together; ``None`` if its steps are not known in advance.
    """

    pipeline: str
    family: str
    techniques: tuple[PlannedTechnique, ...]
    findings: tuple[Finding, ...] = ()
    untested: tuple[tuple[str, str], ...] = ()
    patches: tuple[str, ...] = ()
    device: str = ""
    dtype: str = ""
    estimate: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        plain = asdict(replace(self, techniques=(), estimate=None))
        plain["estimate"] = self.estimate and self.estimate.to_dict()
        plain["techniques"] = [_plain(technique) for technique in self.techniques]
        return plain

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def __str__(self) -> str:
        from hasten._render import render_plan

        return render_plan(self)


def make_plan(
    target: Target, config: Config, call: Mapping[str, Any], *, whole: bool = True
) -> tuple[Plan, tuple[Enabled, ...]]:
    """Check every technique of ``config`` against the pipeline.

    Args:
        target: the pipeline.
        config: techniques to enable.
        call: arguments of the pipeline call to forecast; the pipeline's defaults fill in the rest.
        whole: also estimate the whole call, including the decoder.

    Returns:
        The plan, and the techniques ready to attach.

    Raises:
        UnsupportedError: a technique refuses the pipeline, or the family lacks a capability.
        ConflictError: techniques conflict with each other or with a cache that is enabled on the pipeline.
        PluginError: a technique or a plugin raised an error or returned a wrong value.
    """
    config, notes = with_preset(config, target, target.call_arguments(**call))
    techniques = tuple(Enabled(entry.name, entry.options) for entry in config.techniques)
    unsure = [] if target.verified else [Finding("warning", unverified_note(target))]
    findings: list[Finding] = [*unsure, *notes]
    for technique in techniques:
        for kind in technique.requires:
            target.capability(kind, technique.name)
        if technique.requires and not target.denoisers:
            raise UnsupportedError(_without_denoiser(technique.name, target))
        found = technique.check(target)
        _refuse(technique.name, target, found)
        findings.extend(replace(f, message=f"{technique.name}: {f.message}") for f in found)
    claims = {technique.name: technique.claims(target) for technique in techniques}
    check_claims(list(claims.items()))
    refuse_step_caches(target, claims)
    arguments = target.call_arguments(**call)
    findings.extend(_findings_of_call(techniques, target, arguments))
    plain, forecast = forecasts(target, [(t, claims[t.name]) for t in techniques], arguments)
    planned = tuple(PlannedTechnique(t.name, t.options, claims[t.name], forecast[t.name]) for t in techniques)
    findings.extend(_without_effect(plain, forecast))
    plan = Plan(
        target.name,
        target.adapter.family,
        planned,
        tuple(findings),
        untested_pairs(claims),
        device=target.device,
        dtype=target.dtype,
        estimate=estimate(target, arguments, plain, forecast) if whole else None,
    )
    comments = host().comment(plan)
    _refuse("a plugin", target, comments)
    return replace(plan, findings=(*findings, *comments)), techniques


def _without_denoiser(name: str, target: Target) -> str:
    known = " or ".join(target.adapter.denoisers)
    return (
        f"{name} refuses this {target.name}: it was loaded without its {known}, so it has no denoising "
        f"steps; accelerate the pipeline that contains it"
    )


def _findings_of_call(
    techniques: Sequence[Enabled], target: Target, arguments: Mapping[str, Any]
) -> Iterator[Finding]:
    """What is known ahead of one pipeline call. A call without a step left is nothing to look at further."""
    layout = target.adapter.capability(LatentLayout)
    if layout is not None:
        problem = nothing_to_run(target, arguments) or refused_steps(target, arguments)
        if problem is not None:
            yield Finding("warning", f"{problem}; the same call fails without hasten")
            return
        if (problem := layout.oversize(target.pipe, arguments)) is not None:
            yield Finding("error", problem)
            return
    for technique in techniques:
        for finding in technique.check_call(target, arguments):
            yield replace(finding, message=f"{technique.name}: {finding.message}")


def _without_effect(plain: Forecast | None, found: Mapping[str, Forecast | None]) -> Iterator[Finding]:
    """Who saves nothing beside the others, and might alone."""
    latest = plain
    for name, forecast in found.items():
        if latest is not None and forecast is not None and len(found) > 1:
            before, after = (sum(step.flops for step in of.steps) for of in (latest, forecast))
            if after >= before:
                yield Finding("warning", f"{name}: with the other techniques, it saves nothing in this call")
        latest = forecast or latest


def _refuse(who: str, target: Target, findings: Iterable[Finding]) -> None:
    errors = [finding.message for finding in findings if finding.severity == "error"]
    if errors:
        raise UnsupportedError(f"{who} refuses this {target.name}: {'; '.join(errors)}")


def _plain(technique: PlannedTechnique) -> dict[str, Any]:
    claims = [
        {
            "slot": claim.slot,
            "access": claim.access.value,
            "modules": None if claim.modules is None else sorted(claim.modules),
            "follows_writes": claim.follows_writes,
        }
        for claim in technique.claims
    ]
    forecast = technique.forecast and {
        "steps": [asdict(step) for step in technique.forecast.steps],
        "baseline_flops": technique.forecast.baseline_flops,
        "facts": dict(technique.forecast.facts),
        "flops_ratio": technique.flops_ratio,
    }
    return {
        "name": technique.name,
        "options": dict(technique.options),
        "claims": claims,
        "forecast": forecast,
    }
