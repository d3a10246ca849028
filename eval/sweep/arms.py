"""The settings of a sweep: which steps, solvers and values of dials become rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.commands import Config, Job
from hasten.eval.compare.engine import BASELINE, Arm
from hasten.eval.compare.run import problem_of
from hasten.extend import Pipeline, TechniqueConfig, dial_of, tunable_options

__all__ = ["VALUES", "Setting", "plain_settings", "technique_settings", "that_run"]

VALUES = 5
"""Positions of a dial, beside the one that is configured."""


@dataclass(frozen=True)
class Setting:
    """A row of the sweep, the curve it lies on, and what is written beside it."""

    arm: Arm
    curve: str
    label: str


def plain_settings(
    reference: int, steps: Sequence[int], solvers: Sequence[str | None], own: str
) -> list[Setting]:
    """Plain sampling: the reference, fewer steps with the pipeline's own solver, and both with each other one.

    Args:
        reference: steps of the baseline.
        steps: from above, all below ``reference``.
        solvers: other solvers that the pipeline runs with.
        own: name of its own solver.
    """
    name = f"plain, {own}"
    found = [Setting(Arm(BASELINE, "baseline", reference), name, str(reference))]
    found += [Setting(Arm(f"{count} steps", "control", count), name, str(count)) for count in steps]
    for solver in solvers:
        for count in (reference, *steps):
            arm = Arm(f"{count} steps, {solver}", "control", count, solver=solver)
            found.append(Setting(arm, f"plain, {solver}", str(count)))
    return found


def technique_settings(arm: Arm) -> Iterator[Setting]:
    """A configuration with each of its techniques' dials turned, one curve for each dial.

    A configuration without a dial is one point.
    """
    assert arm.config is not None
    turned = False
    for entry in arm.config.techniques:
        option = dial_of(tunable_options(type(entry.options)))
        if option is None:
            continue
        turned = True
        several = len(arm.config.techniques) > 1
        for value in _positions(entry.options, option):
            config = _with_option(arm.config, entry.name, option, value)
            name = f"{arm.name}, {f'{entry.name}.' if several else ''}{option}={_shown(value)}"
            curve = f"{arm.name}, {entry.name}.{option} ({arm.steps} steps)"
            yield Setting(replace(arm, name=name, config=config), curve, _shown(value))
    if not turned:
        yield Setting(arm, f"{arm.name} ({arm.steps} steps)", "")


def that_run(pipe: Pipeline, settings: Sequence[Setting], job: Job) -> tuple[list[Setting], list[str]]:
    """The settings that the pipeline takes, and a note on each that it does not."""
    found, notes = [], []
    for setting in settings:
        problem = problem_of(pipe, setting.arm, job) if setting.arm.config is not None else ""
        if problem:
            notes.append(f"{setting.arm.name} is left out: {problem}")
        else:
            found.append(setting)
    return found, notes


def _positions(options: TechniqueConfig, option: str) -> tuple[Any, ...]:
    """The dial's positions with the configured one among them, from careful to bold."""
    values = list(tunable_options(type(options))[option].values(VALUES))
    configured = getattr(options, option)
    if configured in values:
        return tuple(values)
    if not isinstance(configured, (int, float)):
        return (*values, configured)
    return tuple(sorted((*values, configured), reverse=values[0] > values[-1]))


def _with_option(config: Config, technique: str, option: str, value: object) -> Config:
    fields = config.to_dict()
    entries = [
        {**entry, option: value} if entry["name"] == technique else entry for entry in fields["techniques"]
    ]
    return Config.of({**fields, "techniques": entries})


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
