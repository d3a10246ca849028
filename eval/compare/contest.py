"""Every candidate against its control: plain sampling with as many steps as fit into the candidate's time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hasten.eval.compare.analysis import Settings, sample_change, sample_tests, set_change
from hasten.eval.compare.engine import Arm
from hasten.eval.compare.scores import SampleScores, SetScores
from hasten.eval.metric import Metric
from hasten.eval.statistics import Estimate

__all__ = ["BEATS", "Contest", "Difference", "contests", "deciding_metrics"]

BEATS = "beats_fewer_steps"
"""Name of the gate that only a candidate that won meets."""

Side = Literal["candidate", "control"]


@dataclass(frozen=True)
class Difference:
    """One metric of a contest.

    Args:
        change: candidate minus control over pairs of the same prompt and seed.
        better: the side that the interval speaks for; ``None`` where it reaches zero.
        decides: whether the outcome depends on it.
    """

    change: Estimate
    better: Side | None
    decides: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {"change": self.change.as_dict(), "better": self.better, "decides": self.decides}


@dataclass(frozen=True)
class Contest:
    """A candidate against plain sampling in its time.

    Args:
        against: name of the control.
        steps: of the control.
        differences: metric -> candidate minus control.
    """

    against: str
    steps: int
    differences: Mapping[str, Difference]

    @property
    def outcome(self) -> Literal["won", "undecided", "lost"]:
        """Won if the candidate is better by one deciding metric at least and the control by none; lost the other way
        round; undecided if neither is better by any, if each is by some, and where no metric decides.
        """
        sides = {difference.better for difference in self.differences.values() if difference.decides}
        if ("candidate" in sides) == ("control" in sides):
            return "undecided"
        return "won" if "candidate" in sides else "lost"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "against": self.against,
            "steps": self.steps,
            "outcome": self.outcome,
            "differences": {name: difference.to_dict() for name, difference in self.differences.items()},
        }


def deciding_metrics(metrics: Sequence[Metric], margins: Collection[str]) -> frozenset[str]:
    """Names of the metrics that decide a contest: those with a margin, else all that judge a picture by itself.

    Closeness to the baseline's output never decides: plain sampling with fewer steps follows the same path, and is
    closer to it even where its pictures are worse.
    """
    own = [metric.name for metric in metrics if "baseline" not in metric.needs]
    return frozenset(name for name in own if name in margins) or frozenset(own)


def contests(
    arms: Sequence[Arm],
    prompts: Sequence[str],
    samples: Sequence[SampleScores],
    sets: Sequence[SetScores],
    settings: Settings,
) -> dict[str, Contest]:
    """Candidate -> its contest, for every candidate that has a control in its time.

    Intervals of the deciding metrics hold together (Bonferroni), so that a candidate that is no better than its
    control wins in at most ``(1 - level) / 2`` of all comparisons, whatever the number of metrics.
    """
    measured: list[SampleScores | SetScores] = [*samples, *sets]
    deciding = deciding_metrics([scores.metric for scores in measured], settings.margins or {})
    joint = replace(settings, level=1 - (1 - settings.level) / max(1, len(deciding)))
    found = {}
    for control in arms:
        for name in control.time_of:
            differences = {}
            for scores in measured:
                decides = scores.metric.name in deciding
                used = joint if decides else settings
                differences[scores.metric.name] = _difference(
                    scores, control.name, name, prompts, used, decides
                )
            found[name] = Contest(control.name, control.steps, differences)
    return {arm.name: found[arm.name] for arm in arms if arm.name in found}


def _difference(
    scores: SampleScores | SetScores,
    control: str,
    candidate: str,
    prompts: Sequence[str],
    settings: Settings,
    decides: bool,
) -> Difference:
    if isinstance(scores, SetScores):
        change = set_change(scores, control, candidate, prompts, settings)
        return Difference(change, _better(change, scores.metric.higher_is_better), decides)
    change = sample_change(scores, control, candidate, prompts, settings)
    better = _better(change, scores.metric.higher_is_better)
    # With a handful of prompts bootstrap intervals are too short; the permutation test is exact there.
    if sample_tests(scores, control, candidate, prompts, settings).p_sign_flip > 1 - settings.level:
        better = None
    return Difference(change, better, decides)


def _better(change: Estimate, higher_is_better: bool) -> Side | None:
    if not change.excludes_zero:
        return None
    return "candidate" if (change.low > 0) == higher_is_better else "control"
