"""Plans and reports as text tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from hasten._console import Console

if TYPE_CHECKING:
    from hasten._plan import Plan, PlannedTechnique
    from hasten._report import Report

__all__ = ["render_plan", "render_report"]

_WIDTH = 80
"""Columns, those of a terminal that nobody has widened."""


def render_report(report: Report) -> str:
    """A report as a table of its forwards and a table of totals."""
    names = ", ".join(report.techniques) or "no technique"
    parts: list[RenderableType] = [escape(f"{report.pipeline} with {names}")]
    parts += [escape(f"note: {note}") for note in report.notes]
    if not report.steps:
        return _text([*parts, escape(report.error or "no run yet: call the pipeline, then ask again")])
    table = Table("run", "step", "level", "denoiser", "branch", "latent", "ms", "techniques", box=None)
    for step in report.steps:
        facts = "; ".join(f"{name}: {_facts(values)}" for name, values in step.facts.items())
        cells = (step.run, step.index, f"{step.level:.4f}", step.denoiser, step.branch)
        table.add_row(*map(str, cells), _size(step.resolution), f"{step.milliseconds:.1f}", escape(facts))
    totals = Table("latent", "forwards", "median ms", "total ms", box=None)
    for total in report.totals:
        numbers = (f"{total.median_milliseconds:.1f}", f"{total.milliseconds:.1f}")
        totals.add_row(_size(total.resolution), str(total.count), *numbers)
    parts += [table, "", totals, f"whole call {report.seconds:.2f} s; forwards by {report.timing}"]
    return _text([*parts, *([escape(f"failed: {report.error}")] if report.error else [])])


def render_plan(plan: Plan) -> str:
    """A plan as text: techniques from the outside in, findings, forecasts."""
    place = f" on {plan.device} in {plan.dtype}" if plan.device and plan.dtype else ""
    parts: list[RenderableType] = [escape(f"{plan.pipeline} (family {plan.family}){place}, outermost first:")]
    if not plan.techniques:
        parts.append("  no technique: calls are measured, nothing is changed")
    for number, technique in enumerate(plan.techniques, 1):
        parts += _technique(number, technique)
    if plan.patches:
        parts += ["patched, from the outside in:", *(escape(f"  {line}") for line in plan.patches)]
    for pair in plan.untested:
        parts.append(escape(f"untested: no combination test covers {' with '.join(pair)}"))
    for finding in plan.findings:
        parts.append(escape(f"{finding.severity}: {finding.message}"))
    return _text(parts)


def _technique(number: int, technique: PlannedTechnique) -> Iterable[RenderableType]:
    yield escape(f"{number}. {technique.name}  {_facts(technique.options)}")
    for claim in technique.claims:
        where = "" if claim.modules is None else f", {len(claim.modules)} modules"
        yield escape(f"   {claim.access.value} {claim.slot}{where}")
    forecast = technique.forecast
    if forecast is None:
        return
    table = Table("step", "level", "latent", "TFLOPs", "", box=None, padding=(0, 1, 0, 2))
    for step in forecast.steps:
        flops = f"{step.flops / 1e12:.4g}"
        table.add_row(str(step.index), f"{step.level:.4f}", _size(step.size), flops, escape(step.note))
    yield table
    if technique.flops_ratio is not None:
        yield f"   predicted {technique.flops_ratio:.2f}x fewer FLOPs in the denoiser (FLOPs, not wall-clock)"
    if forecast.facts:
        yield escape(f"   {_facts(forecast.facts)}")


def _facts(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )


def _size(size: tuple[int, ...] | None) -> str:
    return "not computed" if size is None else "x".join(map(str, size))


def _text(parts: Iterable[RenderableType]) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=_WIDTH, color_system=None, highlight=False, soft_wrap=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
