"""Plans and reports as text tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from hasten._console import Console

if TYPE_CHECKING:
    from hasten._estimate import Estimate
    from hasten._plan import Plan, PlannedTechnique
    from hasten._report import Report
    from hasten._technique import StepForecast

__all__ = ["render_plan", "render_report"]

_WIDTH = 80
"""Columns, those of a terminal that nobody has widened."""


def render_report(report: Report) -> str:
    """A report as a table of its forwards and a table of totals."""
    names = ", ".join(report.techniques) or "no technique"
    parts: list[RenderableType] = [escape(f"{report.pipeline} with {names}")]
    parts += [escape(f"note: {note}") for note in report.notes]
    if not report.steps:
        return _text([*parts, escape(report.error or "no run yet: call the pipeline first")])
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
        parts.append("  no technique: calls are measured and not changed")
    for number, technique in enumerate(plan.techniques, 1):
        parts += _technique(number, technique)
    if plan.estimate is not None:
        parts += _estimate(plan.estimate)
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
    if technique.forecast is not None and technique.forecast.facts:
        yield escape(f"   {_facts(technique.forecast.facts)}")


def _estimate(known: Estimate) -> Iterable[RenderableType]:
    """One table and one figure for the whole call."""
    table = Table("step", "level", "latent", "TFLOPs", "seconds", "", box=None, padding=(0, 1, 0, 2))
    for column in (3, 4):
        table.columns[column].justify = "right"
    seconds = known.seconds
    start = 0
    for steps in _alike(known.steps):
        end = start + len(steps)
        spent = "" if seconds is None else f"{sum(seconds.steps[start:end]):.3g}"
        flops = _tera(sum(step.flops for step in steps))
        table.add_row(_span(steps), _levels(steps), _size(steps[0].size), flops, spent, escape(steps[0].note))
        start = end
    for part in known.parts:
        table.add_row("", "", part.name, "?" if part.flops is None else _tera(part.flops))
    times = ("", "", "")
    if seconds is not None:
        times = (f"{seconds.outside:.3g}", f"{seconds.accelerated:.3g}", f"{seconds.plain:.3g}")
        table.add_row("", "", "these, and the rest", "", times[0])
    table.add_row("", "", "together", _tera(known.flops), times[1])
    table.add_row("", "", f"plain, {len(known.plain)} steps", _tera(known.plain_flops), times[2])
    yield table
    yield from map(escape, _verdict(known))


def _verdict(known: Estimate) -> Iterable[str]:
    if known.unpriced:
        yield f"not in these figures: {', '.join(known.unpriced)}, which has no forecast"
    gain = f"predicted {known.flops_ratio:.2f}x fewer FLOPs"
    if known.seconds is not None and known.speedup is not None:
        yield f"{gain}, {known.speedup:.2f}x in seconds (measured on {known.seconds.source})"
    else:
        yield f"{gain} (FLOPs, not wall-clock)"
        yield f"seconds: not known, {known.unmeasured} not measured yet; `--warm-up` or one call measures it"
    if known.bound is not None:
        yield _bound(known)
    if not known.worth and known.bound is not None:
        yield "not worth it: less than 1.1x; use fewer steps or the plain pipeline instead"


def _bound(known: Estimate) -> str:
    rest = len(known.remaining)
    names = [f"the other {rest}"] if rest else []
    names += [f"the {part.name}" for part in known.parts]
    left = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
    return (
        f"{len(known.steps) - rest} of {len(known.steps)} steps are cheaper; {left} remain: at most "
        f"{known.bound:.2g}x fewer FLOPs"
    )


def _alike(steps: Sequence[StepForecast]) -> list[list[StepForecast]]:
    """Neighbouring steps that cost and do the same."""
    found = groupby(steps, key=lambda step: (step.size, f"{step.flops:.4g}", step.note))
    return [list(group) for _, group in found]


def _span(steps: Sequence[StepForecast]) -> str:
    first, last = steps[0].index, steps[-1].index
    return str(first) if first == last else f"{first}-{last}"


def _levels(steps: Sequence[StepForecast]) -> str:
    first, last = (f"{step.level:.4f}" for step in (steps[0], steps[-1]))
    return first if len(steps) == 1 else f"{first}-{last}"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.4g}"


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
