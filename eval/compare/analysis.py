"""From scores to rows: figures with intervals, paired differences, verdicts, and what this sample can show at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.eval.compare.engine import BASELINE, Arm
from hasten.eval.compare.scores import SampleScores, SetScores
from hasten.eval.efficiency.timing import Timings
from hasten.eval.metric import Metric
from hasten.eval.statistics import (
    Estimate,
    PairedTests,
    Verdict,
    holm,
    mean_estimate,
    minimal_detectable_effect,
    non_inferiority,
    paired_difference,
    paired_ratio_difference,
    paired_tests,
    ratio_of_sums,
)
from hasten.extend import ConfigError, suggestion

__all__ = [
    "Figure",
    "Settings",
    "analyse",
    "batch_timings",
    "check_margins",
    "sample_change",
    "sample_tests",
    "sanity",
    "set_change",
]


@dataclass(frozen=True)
class Settings:
    """How figures become conclusions.

    Args:
        level: coverage of the intervals.
        seed: of the resampling.
        margins: metric -> the largest loss that is tolerated, in the metric's unit, never negative.
    """

    level: float = 0.95
    seed: int = 0
    margins: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Figure:
    """One metric of one arm.

    Args:
        value: the arm's own figure.
        change: arm minus baseline over pairs; ``None`` for the baseline, and for metrics that compare with it.
        tests: of "no difference", for metrics with a score per picture.
        p_holm: their p-value, adjusted for all candidates and metrics together; candidates only.
        smallest_detectable: the true difference that this sample finds in four of five cases.
        verdict: against the user's margin; candidates only.
    """

    value: Estimate
    change: Estimate | None = None
    tests: PairedTests | None = None
    p_holm: float | None = None
    smallest_detectable: float | None = None
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        verdict, tests = self.verdict, self.tests
        return {
            "value": self.value.as_dict(),
            "change": self.change.as_dict() if self.change is not None else None,
            "p": tests.p_sign_flip if tests is not None else None,
            "p_holm": self.p_holm,
            "effect_size": tests.effect_size if tests is not None else None,
            "wins_ties_losses": [tests.wins, tests.ties, tests.losses] if tests is not None else None,
            "smallest_detectable": self.smallest_detectable,
            "verdict": None
            if verdict is None
            else {"outcome": verdict.outcome, "margin": verdict.margin, "worst": verdict.worst},
        }


Rows = dict[str, dict[str, Figure]]


def check_margins(margins: Mapping[str, float], metrics: Sequence[Metric]) -> None:
    """Refuse margins that could never be judged.

    Raises:
        ConfigError: if one names a metric that is not measured, or that has no difference to the baseline.
    """
    measured = {metric.name: metric for metric in metrics}
    for name in margins:
        if name not in measured:
            known = ", ".join(measured)
            raise ConfigError(
                f"a margin for {name!r}, which is not measured{suggestion(name, measured)} Measured: {known}."
            )
        if "baseline" in measured[name].needs and measured[name].perfect is None:
            raise ConfigError(
                f"{name} already compares with the baseline and has no largest score, so it has no margin; use --gate, "
                "or a margin of ssim"
            )


def analyse(
    arms: Sequence[Arm],
    prompts: Sequence[str],
    samples: Sequence[SampleScores],
    sets: Sequence[SetScores],
    settings: Settings,
) -> Rows:
    """Figures by arm and metric. Margins are those that :func:`check_margins` accepts."""
    scored: dict[str, Metric] = {scores.metric.name: scores.metric for scores in samples}
    scored |= {scores.metric.name: scores.metric for scores in sets}
    rows: Rows = {arm.name: {} for arm in arms}
    for arm in arms:
        for sample in samples:
            if arm.name in sample.values:
                rows[arm.name][sample.metric.name] = _sample_figure(sample, arm.name, prompts, settings)
        for whole in sets:
            rows[arm.name][whole.metric.name] = _set_figure(whole, arm.name, prompts, settings)
    candidates = [arm.name for arm in arms if arm.role == "candidate"]
    for name in candidates:
        for metric, figure in rows[name].items():
            rows[name][metric] = _judged(figure, scored[metric].higher_is_better, metric, settings)
    _adjust(rows, candidates)
    return rows


def _sample_figure(scores: SampleScores, arm: str, prompts: Sequence[str], settings: Settings) -> Figure:
    options: dict[str, Any] = {"clusters": prompts, "level": settings.level}
    if arm in scores.counts:
        value = ratio_of_sums(*scores.counts[arm], **options)
    else:
        value = mean_estimate(scores.values[arm], **options, seed=settings.seed)
    if arm != BASELINE and BASELINE not in scores.values and scores.metric.name in (settings.margins or {}):
        # A metric that compares with the baseline by itself loses what its pictures lack to being the same.
        assert scores.metric.perfect is not None
        change = mean_estimate(scores.values[arm] - scores.metric.perfect, **options, seed=settings.seed)
        return Figure(value, change, smallest_detectable=_detectable(change))
    if arm == BASELINE or BASELINE not in scores.values:
        return Figure(value)
    change = sample_change(scores, BASELINE, arm, prompts, settings)
    tests = sample_tests(scores, BASELINE, arm, prompts, settings)
    return Figure(value, change, tests, smallest_detectable=_detectable(change))


def sample_change(
    scores: SampleScores, base: str, arm: str, prompts: Sequence[str], settings: Settings
) -> Estimate:
    """``arm`` minus ``base`` over pairs of the same prompt and seed, prompts being resampled."""
    options: dict[str, Any] = {"clusters": prompts, "level": settings.level, "seed": settings.seed}
    if arm not in scores.counts:
        return paired_difference(scores.values[base], scores.values[arm], **options)
    (before, asked), (right, asked_too) = scores.counts[base], scores.counts[arm]
    return paired_ratio_difference(before, right, asked, candidate_asked=asked_too, **options)


def sample_tests(
    scores: SampleScores, base: str, arm: str, prompts: Sequence[str], settings: Settings
) -> PairedTests:
    """Tests of "``arm`` is no different from ``base``"."""
    return paired_tests(scores.values[base], scores.values[arm], clusters=prompts, seed=settings.seed)


def _set_options(scores: SetScores, arm: str, prompts: Sequence[str], settings: Settings) -> dict[str, Any]:
    rows = len(next(iter(scores.features[arm].values())))
    clusters = [
        prompt for prompt in prompts for _ in range(rows // len(prompts))
    ]  # frames of a video are one cluster
    return {"clusters": clusters, "level": settings.level, "seed": settings.seed}


def _set_figure(scores: SetScores, arm: str, prompts: Sequence[str], settings: Settings) -> Figure:
    options = _set_options(scores, arm, prompts, settings)
    value = scores.metric.aggregate(scores.features[arm], scores.reference, **options).estimate
    if arm == BASELINE:
        return Figure(value)
    change = set_change(scores, BASELINE, arm, prompts, settings)
    return Figure(value, change, smallest_detectable=_detectable(change))


def set_change(
    scores: SetScores, base: str, arm: str, prompts: Sequence[str], settings: Settings
) -> Estimate:
    """``arm`` minus ``base``, the same prompts being left out of both."""
    options = _set_options(scores, arm, prompts, settings)
    return scores.metric.difference(scores.features[base], scores.features[arm], scores.reference, **options)


def _detectable(change: Estimate) -> float | None:
    # No spread at all says nothing about what could be found.
    known = math.isfinite(change.se) and change.se > 0
    return minimal_detectable_effect(change.se, level=change.level) if known else None


def _judged(figure: Figure, higher_is_better: bool, metric: str, settings: Settings) -> Figure:
    margin = (settings.margins or {}).get(metric)
    if margin is None or figure.change is None:
        return figure
    return replace(figure, verdict=non_inferiority(figure.change, margin, higher_is_better=higher_is_better))


def _adjust(rows: Rows, candidates: Sequence[str]) -> None:
    """Holm over every test of every candidate: with many of them, one is always small."""
    places = [(arm, metric) for arm in candidates for metric, f in rows[arm].items() if f.tests is not None]
    p_values = [rows[arm][metric].tests.p_sign_flip for arm, metric in places]  # type: ignore[union-attr]
    for (arm, metric), adjusted in zip(places, holm(p_values), strict=True):
        rows[arm][metric] = replace(rows[arm][metric], p_holm=adjusted)


def batch_timings(arms: Sequence[Arm], records: Mapping[tuple[str, int], Any]) -> Timings:
    """Seconds of each batch of every arm; entry ``i`` of all arms is the same batch."""
    seconds: dict[str, dict[int, float]] = {arm.name: {} for arm in arms}
    for (arm, _), record in records.items():
        seconds[arm][record.batch] = record.batch_seconds
    return Timings({arm: tuple(by[batch] for batch in sorted(by)) for arm, by in seconds.items()})


def sanity(arms: Sequence[Arm], prompts: Sequence[str], digests: Mapping[tuple[str, int], str]) -> list[str]:
    """What looks like a mistake, or limits what the figures mean, in words."""
    found = []
    n = len(prompts)
    if n < 20:
        found.append(
            f"{n} prompts are few: intervals cover a few points less than stated, and only large losses are found"
        )
    if len(set(prompts)) < n:
        found.append(f"{n - len(set(prompts))} prompts occur more than once; each counts as one cluster")
    for arm in arms:
        same = sum(digests[arm.name, i] == digests[BASELINE, i] for i in range(n))
        if arm.role == "candidate" and same == n:
            found.append(
                f"{arm.name}: every picture is bit-identical to the baseline's, so its techniques had no effect"
            )
        if arm.name == "repeat" and same < n:
            found.append(
                f"a second baseline run reproduced {same} of {n} pictures: this machine is not deterministic"
            )
        if len({digests[arm.name, i] for i in range(n)}) < len(set(prompts)):
            found.append(f"{arm.name}: some different prompts gave the same picture")
    return found
