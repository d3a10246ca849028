"""Where a tuning searches: steps, solvers, and the options that techniques declare as worth trying."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Protocol

import hasten
from hasten.commands import Config, Job, host
from hasten.eval.tune.setting import Setting
from hasten.extend import (
    Between,
    Choices,
    ConflictError,
    HastenError,
    Pipeline,
    TechniqueConfig,
    Tunable,
    UnsupportedError,
    dial_of,
    tunable_options,
)

__all__ = ["FEWEST", "Space", "Technique", "Trial", "space_of"]

FEWEST = 4
"""Steps that a tuning goes down to, where the reference has more."""
_SHARED = "ranks."
_POSITIONS = 4
"""Of a technique's dial, among the settings that are tried first."""


class Trial(Protocol):
    """What is asked of a trial of the search."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number from ``low`` to ``high``."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from ``low`` to ``high``."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of ``choices``."""


@dataclass(frozen=True)
class Technique:
    """A technique that may be switched on.

    Args:
        name: of the technique.
        fixed: options that the user has chosen.
        free: option -> what of it is worth trying.
    """

    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    free: Mapping[str, Tunable] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """What can be tried.

    Args:
        reference: most steps, those of the baseline.
        solvers: names, the pipeline's own (``None``) first.
        techniques: that run on the pipeline, in the order in which they are enabled.
        excluded: technique -> why it can't be tried.
        conflicts: pairs that can't be enabled together -> why.
        steps: whether their number can be chosen.
    """

    reference: int
    solvers: tuple[str | None, ...] = (None,)
    techniques: tuple[Technique, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    conflicts: Mapping[frozenset[str], str] = field(default_factory=dict)
    steps: bool = True

    def suggest(self, trial: Trial) -> Setting:
        """The setting that a trial of the search stands for; a technique is offered beside those it goes with."""
        steps, solver = self.reference, self.solvers[0]
        if self.steps:
            steps = trial.suggest_int("steps", min(FEWEST, self.reference), self.reference, log=True)
            solver = self.solvers[trial.suggest_categorical("solver", range(len(self.solvers)))]
        chosen: dict[str, dict[str, Any]] = {}
        for technique in self.techniques:
            if any(frozenset({technique.name, other}) in self.conflicts for other in chosen):
                continue
            if trial.suggest_categorical(technique.name, [False, True]):
                options = {
                    option: _suggested(trial, f"{technique.name}.{option}", tunable)
                    for option, tunable in technique.free.items()
                }
                chosen[technique.name] = {**technique.fixed, **options}
        return Setting(steps, solver, chosen)

    def parameters(self, setting: Setting) -> dict[str, Any]:
        """What :meth:`suggest` has to be answered to come to ``setting``."""
        found: dict[str, Any] = {}
        if self.steps:
            found = {"steps": setting.steps, "solver": self.solvers.index(setting.solver)}
        for technique in self.techniques:
            options = setting.techniques.get(technique.name)
            found[technique.name] = options is not None
            for option, tunable in technique.free.items() if options is not None else ():
                assert options is not None
                value = options[option]
                found[f"{technique.name}.{option}"] = (
                    json.dumps(value) if isinstance(tunable, Choices) else value
                )
        return found

    def first_settings(self, ladder: Sequence[int]) -> Iterator[Setting]:
        """What is tried before the search begins to learn: the plain ladder, then each technique over its dial.

        Args:
            ladder: plain steps, from above.
        """
        rungs = list(ladder) if self.steps else []
        for steps in rungs:
            yield Setting(steps, self.solvers[0])
        for technique in self.techniques:
            for values in self._dialled(technique):
                yield Setting(self.reference, self.solvers[0], {technique.name: values})
        fewer = rungs[: max(1, len(rungs) // 2)]
        for technique in self.techniques:
            for steps in fewer:
                *_, boldest = self._dialled(technique)
                yield Setting(steps, self.solvers[0], {technique.name: boldest})

    def nearest(self, config: Config) -> Setting | None:
        """The setting with a configuration's techniques and those of its options that may be searched.

        ``None`` where it has no technique, or one that can't be tried.
        """
        known = {technique.name: technique for technique in self.techniques}
        names = [entry.name for entry in config.techniques]
        if not names or not known.keys() >= set(names):
            return None
        chosen = {}
        for technique in self.techniques:  # in the order of the space
            for entry in config.techniques:
                if entry.name == technique.name:
                    given = entry.options.model_dump(mode="json")
                    free = {
                        option: _inside(tunable, given.get(option))
                        for option, tunable in technique.free.items()
                    }
                    chosen[technique.name] = {**technique.fixed, **free}
        return Setting(self.reference, self.solvers[0], chosen)

    def _dialled(self, technique: Technique) -> list[dict[str, Any]]:
        defaults = _options(technique.name, technique.fixed).model_dump(mode="json")
        usual = {option: _inside(tunable, defaults.get(option)) for option, tunable in technique.free.items()}
        dial = dial_of(technique.free)
        positions = [usual]
        if dial is not None:
            positions += [{**usual, dial: value} for value in technique.free[dial].values(_POSITIONS)]
        options = [{**technique.fixed, **values} for values in positions]
        return [values for i, values in enumerate(options) if values not in options[:i]]


def _options(name: str, given: Mapping[str, Any]) -> TechniqueConfig:
    """The options of a technique, of the class that suits what is given."""
    return Config.of({"techniques": {name: dict(given)}}).techniques[0].options


def _inside(tunable: Tunable, value: Any) -> Any:
    """``value`` where the search may go, else the most careful that it may try."""
    if isinstance(tunable, Choices):
        return value if value in tunable.options else tunable.options[0]
    assert isinstance(tunable, Between)
    low, high = sorted((tunable.careful, tunable.bold))
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if numeric and low <= value <= high else tunable.careful


def _suggested(trial: Trial, name: str, tunable: Tunable) -> Any:
    if isinstance(tunable, Choices):
        # The library keeps only plain values; options may be lists.
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in tunable.options]))
    assert isinstance(tunable, Between)
    low, high = sorted((tunable.careful, tunable.bold))
    if tunable.whole:
        return trial.suggest_int(name, int(low), int(high), log=tunable.log)
    return float(f"{trial.suggest_float(name, low, high, log=tunable.log):.3g}")


def space_of(
    pipe: Pipeline,
    job: Job,
    solvers: Sequence[str | None],
    chosen: Config | None,
    *,
    steps_are_free: bool,
) -> Space:
    """The space of a pipeline.

    Args:
        pipe: the stock pipeline.
        job: of the tuning; its steps are the reference.
        solvers: those the pipeline runs with, its own (``None``) first.
        chosen: techniques to restrict the search to, with options that stay as they are; ``None`` for every installed
            technique.
        steps_are_free: whether the number of steps can be chosen.
    """
    names = sorted(host().registry.techniques) if chosen is None else [e.name for e in chosen.techniques]
    fixed = {
        entry.name: entry.options.model_dump(mode="json", exclude_unset=True)
        for entry in (chosen.techniques if chosen is not None else ())
    }
    found: list[Technique] = []
    excluded: dict[str, str] = {}
    for name in names:
        options = fixed.get(name, {})
        reason = _refusal(pipe, job, {name: options})
        if reason:
            excluded[name] = reason
            continue
        declared = tunable_options(type(_options(name, options)))
        free = {option: tunable for option, tunable in declared.items() if option not in options}
        found.append(Technique(name, options, free))
    conflicts = {}
    for one, other in combinations(found, 2):
        if reason := _refusal(pipe, job, {one.name: one.fixed, other.name: other.fixed}):
            conflicts[frozenset({one.name, other.name})] = reason
    return Space(
        int(job.call["num_inference_steps"]),
        tuple(solvers),
        tuple(found),
        excluded,
        conflicts,
        steps_are_free,
    )


def _refusal(pipe: Pipeline, job: Job, techniques: Mapping[str, Mapping[str, Any]]) -> str:
    """Why these techniques can't be tried; empty if they can."""
    try:
        config = Config.of({"techniques": techniques})
        plan = hasten.plan(pipe, config, **job.call)
    except (ConflictError, UnsupportedError) as error:
        return str(error)
    except HastenError as error:
        return f"it can't run as it is: {error}"
    for technique in plan.techniques:
        if any(claim.slot.startswith(_SHARED) for claim in technique.claims):
            return (
                "it divides a call among processes, and a tuning lets every process run settings of its own"
            )
    return "; ".join(finding.message for finding in plan.findings if finding.severity == "error")
