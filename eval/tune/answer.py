"""What a tuning answers: the setting, the evidence for it, and why each technique is in or out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hasten.eval.compare.wording import estimate_text, number
from hasten.eval.efficiency.timing import Timings
from hasten.eval.tune.confirm import Standing
from hasten.eval.tune.search import Result
from hasten.eval.tune.setting import Setting
from hasten.eval.tune.space import Space

__all__ = ["Answer", "answer_of", "reasons", "unconfirmed"]

Kind = Literal["techniques", "plain", "reference"]


@dataclass(frozen=True)
class Answer:
    """The result of a tuning.

    Args:
        setting: what to use.
        kind: whether it has techniques, is plain sampling with fewer steps, or the reference because nothing faster
            was confirmed.
        confirmed: whether it held on prompts that the search never saw.
        sentence: the answer in words.
    """

    setting: Setting
    kind: Kind
    confirmed: bool
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "setting": self.setting.to_dict(),
            "kind": self.kind,
            "confirmed": self.confirmed,
            "sentence": self.sentence,
        }


def answer_of(
    standings: Sequence[Standing], timings: Timings | None, reference: int, margins: Mapping[str, float]
) -> Answer:
    """The fastest finalist that held; plain sampling unless techniques are faster than it beyond doubt.

    Args:
        standings: of the confirmation.
        timings: of its batches; ``None`` where FLOPs decide.
        reference: steps of the baseline.
        margins: metric -> tolerated loss.
    """
    within = ", ".join(f"{name} {number(margin)}" for name, margin in margins.items())
    held = sorted((s for s in standings if s.held), key=lambda s: -_gain(s, timings))
    if not held:
        tried = f"none of {len(standings)} finalists" if standings else "nothing that is faster"
        sentence = (
            f"{tried} was confirmed to lose no more than {within}: the reference with {reference} steps stays"
        )
        return Answer(Setting(reference), "reference", True, sentence)
    plain = next((s for s in held if s.finalist.setting.plain), None)
    winner = held[0]
    if plain is not None and winner is not plain and not _faster(winner, plain, timings):
        winner = plain
    setting = winner.finalist.setting
    gain = _gain_text(winner, timings)
    changes = ", ".join(
        f"{name} {estimate_text(change.as_dict(), True)}" for name, change in winner.changes.items()
    )
    text = f"{setting.describe()}: {gain} the reference's speed, {changes} on fresh prompts (within {within})"
    if setting.plain:
        why = "nothing with techniques came this far"
        if any(not s.finalist.setting.plain for s in standings):
            why = "nothing with techniques was confirmed"
        if any(not s.finalist.setting.plain for s in held):
            why = "nothing that was confirmed is faster beyond doubt"
        text = f"plain sampling is best here, {why}: {text}"
    elif plain is not None:
        beside = _beside(winner, plain, timings)
        text += (
            f"; {beside} the speed of {plain.finalist.setting.describe()} of plain sampling, which held too"
        )
    else:
        text += "; no fewer steps of plain sampling were confirmed"
    return Answer(setting, "plain" if setting.plain else "techniques", True, text)


def _gain(standing: Standing, timings: Timings | None) -> float:
    return standing.flops if timings is None else standing.speedup.value


def _gain_text(standing: Standing, timings: Timings | None) -> str:
    if timings is None:
        return f"by FLOPs {standing.flops:.2f} times"
    return f"{standing.speedup.value:.2f}x [{number(standing.speedup.low)}, {number(standing.speedup.high)}]"


def _faster(one: Standing, other: Standing, timings: Timings | None) -> bool:
    if timings is None:
        return one.flops > other.flops
    return timings.ratio(other.finalist.name, one.finalist.name).low > 1


def _beside(one: Standing, other: Standing, timings: Timings | None) -> str:
    if timings is None:
        return f"by FLOPs {one.flops / other.flops:.2f} times"
    ratio = timings.ratio(other.finalist.name, one.finalist.name)
    return f"{ratio.value:.2f}x [{number(ratio.low)}, {number(ratio.high)}]"


def unconfirmed(results: Sequence[Result], reference: int) -> Answer:
    """The best so far of a search that was interrupted."""
    held = [result for result in results if result.outcome == "held"]
    if not held:
        sentence = f"interrupted before any setting held: the reference with {reference} steps stays"
        return Answer(Setting(reference), "reference", False, sentence)
    best = min(held, key=lambda result: result.cost)
    setting = Setting.of(best.setting)
    sentence = (
        f"{setting.describe()}: the fastest that held over {best.prompts} prompts of the search, which was "
        "interrupted; not confirmed on others"
    )
    return Answer(setting, "plain" if setting.plain else "techniques", False, sentence)


def reasons(
    space: Space,
    results: Sequence[Result],
    skipped: Sequence[tuple[Setting, str]],
    answer: Answer,
    unit: str,
) -> dict[str, str]:
    """Technique -> why it is in the answer, or out of it."""
    found = {name: f"out: {reason}" for name, reason in space.excluded.items()}
    for technique in space.techniques:
        found[technique.name] = _reason(technique.name, space, results, skipped, answer, unit)
    return found


def _reason(
    name: str,
    space: Space,
    results: Sequence[Result],
    skipped: Sequence[tuple[Setting, str]],
    answer: Answer,
    unit: str,
) -> str:
    tried = [result for result in results if name in Setting.of(result.setting).techniques]
    # Of a setting with several techniques, the reason may be another one's.
    alone = sorted(
        (pair for pair in skipped if name in pair[0].techniques), key=lambda pair: len(pair[0].techniques)
    )
    unspent = [why for _, why in alone]
    held = sorted((r for r in tried if r.outcome == "held"), key=lambda r: r.cost)
    counted = f"settings looked at: {len(tried)}, ruled out before: {len(unspent)}"
    if name in answer.setting.techniques:
        return f"in: {counted}"
    for other in answer.setting.techniques:
        if (reason := space.conflicts.get(frozenset({name, other}))) is not None:
            return f"out: it does not go with {other}, which is in ({reason}); {counted}"
    if held:
        best = Setting.of(held[0].setting).describe()
        return f"out: its fastest setting that held takes {held[0].cost:.3g} {unit} ({best}); {counted}"
    if tried:
        closest = min(tried, key=lambda r: r.worst)
        lost = max(closest.loss, key=lambda metric: closest.loss[metric], default="")
        return (
            f"out: none of its settings held; the closest ({Setting.of(closest.setting).describe()}) was "
            f"{closest.outcome} after {closest.prompts} prompts, with {closest.worst:.2f} of the margin of {lost} "
            f"lost; {counted}"
        )
    if unspent:
        return f"out: no picture was spent on it: {unspent[0]}; {counted}"
    return "out: the time was up before it had its turn"
