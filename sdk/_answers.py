"""What plugins answer to the host, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeGuard, get_args

from hasten._claims import Access, Claim
from hasten._culprit import Culprit
from hasten._technique import Finding, Forecast, Severity, StepForecast

__all__ = ["checked_claims", "checked_findings", "checked_forecast", "checked_notes"]

_SEVERITIES = ", ".join(get_args(Severity))
_FINDINGS = "a list of hasten.Finding(severity, message), empty if there are no findings"
_NOTES = "a list of sentences, empty if there are no notes"
_CLAIMS = "a list of hasten.Claim(slot, access), empty if no slot is used"
_FORECAST = "a hasten.Forecast with a tuple of hasten.StepForecast, or None if there is no forecast"


def checked_findings(answer: object, culprit: Culprit, place: str) -> tuple[Finding, ...]:
    """``answer`` as findings.

    Raises:
        PluginError: it is something else, or one of them has no known severity or no text.
    """
    findings = _items(answer, Finding, culprit, place, _FINDINGS)
    for finding in findings:
        if finding.severity not in get_args(Severity) or not isinstance(finding.message, str):
            raise culprit.returned(finding, place, f"findings with a text and a severity of {_SEVERITIES}")
    return findings


def checked_claims(answer: object, culprit: Culprit) -> tuple[Claim, ...]:
    """``answer`` as claims.

    Raises:
        PluginError: it is something else, or one of them would not be understood.
    """
    claims = _items(answer, Claim, culprit, "claims", _CLAIMS)
    for claim in claims:
        if wanted := _claim_fault(claim):
            raise culprit.returned(claim, "claims", f"claims with {wanted}")
    return claims


def checked_notes(answer: object, culprit: Culprit, place: str) -> tuple[str, ...]:
    """``answer`` as sentences.

    Raises:
        PluginError: it is something else.
    """
    return _items(answer, str, culprit, place, _NOTES)


def checked_forecast(answer: object, culprit: Culprit) -> Forecast | None:
    """``answer`` as a forecast.

    Raises:
        PluginError: it is something else.
    """
    if answer is None or _is_forecast(answer):
        return answer
    raise culprit.returned(answer, "forecast", _FORECAST)


def _items(answer: object, kind: type[Any], culprit: Culprit, place: str, wanted: str) -> tuple[Any, ...]:
    if isinstance(answer, (str, bytes, Mapping)) or not isinstance(answer, Iterable):
        raise culprit.returned(answer, place, wanted)
    items = tuple(answer)
    for item in items:
        if not isinstance(item, kind):
            raise culprit.returned(item, f"{place}, among others", wanted)
    return items


def _claim_fault(claim: Claim) -> str | None:
    if not isinstance(claim.slot, str):
        return "the name of a slot in 'slot'"
    if not isinstance(claim.access, Access):
        return f"one of {', '.join(map(str, Access))} in 'access'"
    modules = claim.modules
    if modules is None or (isinstance(modules, frozenset) and all(isinstance(name, str) for name in modules)):
        return None
    return "None or a frozenset of module names in 'modules'"


def _is_forecast(answer: object) -> TypeGuard[Forecast]:
    return (
        isinstance(answer, Forecast)
        and isinstance(answer.steps, tuple)
        and isinstance(answer.baseline_flops, Real)
        and isinstance(answer.facts, Mapping)
        and all(isinstance(step, StepForecast) and isinstance(step.flops, Real) for step in answer.steps)
    )
