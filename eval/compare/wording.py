"""How figures are put into words, the same way on the console and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from hasten.eval.statistics import NO_DISCORDANT

__all__ = [
    "MINIATURE_NOTE",
    "change_text",
    "contest_text",
    "estimate_text",
    "forwards_text",
    "headline",
    "knee_text",
    "measured_text",
    "memory_text",
    "number",
    "sameness_text",
    "speed_text",
    "stages_text",
    "steps_text",
    "verdict_text",
]

MINIATURE_NOTE = (
    "Metrics whose names begin with mini_ come from miniature scorers trained on the same small data set as the "
    "pipeline. They show trends and are not comparable with published FID, CLIP score or CMMD."
)
_SAMENESS = {
    "exact": "should give the baseline's output up to rounding: any distance from it is a defect",
    "close": "approximates the baseline's output of the same seed: its distance from it is a loss",
    "distributional": "gives another output for the same seed by design: similarity to the baseline does "
    "not measure its quality",
}
_CONTROL = "plain sampling in the same time"
_OUTCOMES = {
    "held": "within the margin of {}",
    "missed": "beyond the margin of {}",
    "undecided": "undecided at a margin of {}",
}


def number(value: float | None, signed: bool = False) -> str:
    """Three significant digits; ``None`` (unbounded, unknown) as a dash."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    text = f"{value:+.3g}" if signed else f"{value:.3g}"
    return text if "e+" not in text else f"{value:+,.0f}" if signed else f"{value:,.0f}"


def estimate_text(estimate: Mapping[str, Any], signed: bool = False) -> str:
    """``0.91 [0.88, 0.94]``."""
    value, low, high = (number(estimate[key], signed) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def change_text(figure: Mapping[str, Any]) -> str:
    """The difference (to the baseline, or to a control) with its interval, empty without one."""
    change = figure["change"]
    if change is None:
        return ""
    if change["method"] == NO_DISCORDANT:
        # Nothing was seen to differ; what that leaves possible is no measured spread and shouldn't read like one.
        return f"none differs (±{number(change['high'])})"
    return estimate_text(change, signed=True)


def speed_text(document: Mapping[str, Any], arm: str, against: str = "speedup") -> str:
    """Speed-up with its interval, against the baseline or (``"speedup_knee"``) the knee; empty where unknown."""
    speed = document["times"]["arms"][arm].get(against)
    if speed is None:
        return ""
    speed = speed["value"]
    return f"{speed['value']:.2f}x [{number(speed['low'])}, {number(speed['high'])}]"


def steps_text(arm: Mapping[str, Any]) -> str:
    """Steps of a row, and its solver where that is not the pipeline's own."""
    return f"{arm['steps']} ({arm['solver']})" if arm["solver"] else str(arm["steps"])


def knee_text(document: Mapping[str, Any]) -> str:
    """Where the knee of the step curve is and how that was found, in one sentence."""
    knee = document["knee"]
    if knee is None:
        return (
            "no knee of the step curve was looked for, so speed-ups are against the baseline's steps alone "
            "(--margin METRIC=VALUE and --knee)"
        )
    margins = ", ".join(f"{name} {number(margin)}" for name, margin in knee["margins"].items())
    tried = "; ".join(map(_rung_text, knee["rungs"]))
    place = f"the knee is {steps_text(knee)} plain steps of {knee['reference']}"
    if knee["steps"] == knee["reference"]:
        place = f"the knee is the baseline: no fewer than {knee['reference']} steps held"
    return f"{place}, within {margins}, over {knee['prompts']} prompts ({tried})"


def _rung_text(rung: Mapping[str, Any]) -> str:
    if rung["held"]:
        return f"{steps_text(rung)} held"
    worst = {name: figure for name, figure in rung["figures"].items() if not figure["held"]}
    needed = max((figure["needed"] or 0 for figure in worst.values()), default=0)
    text = f"{steps_text(rung)} did not: " + ", ".join(
        f"{name} {change_text(figure)}" for name, figure in worst.items()
    )
    return text + (f", undecided, about {needed} prompts would tell" if needed else "")


def forwards_text(document: Mapping[str, Any], arm: str) -> str:
    """How many denoiser forwards ran at which latent size, and how long each took (median)."""
    by_size: dict[str, list[float]] = {}
    for step, milliseconds in zip(document["steps"][arm], document["times"]["steps"][arm], strict=True):
        by_size.setdefault("x".join(map(str, step["resolution"] or ("?",))), []).append(milliseconds)
    parts = [f"{len(times)} at {size} ({median(times):.0f} ms each)" for size, times in by_size.items()]
    return ", ".join(parts)


def memory_text(document: Mapping[str, Any], arm: str) -> str:
    """Peak memory of one batch above what was in use before it, empty where it was not measured."""
    memory = document["times"]["arms"][arm].get("memory")
    if memory is None:
        return ""
    megabytes = memory["value"] / 1e6
    return f"{megabytes / 1000:.2f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def stages_text(document: Mapping[str, Any], arm: str) -> str:
    """Seconds of one batch by stage, the largest first; empty where they were not measured."""
    stages: Mapping[str, float] = document["times"]["arms"][arm].get("stages", {})
    largest_first = sorted(stages.items(), key=lambda stage: -stage[1])
    return ", ".join(f"{name} {seconds:.3g} s" for name, seconds in largest_first)


def sameness_text(arm: Mapping[str, Any]) -> str:
    """How to read a candidate's closeness to the baseline, as the end of a sentence about it."""
    return _SAMENESS[arm["sameness"]]


def contest_text(document: Mapping[str, Any], arm: str) -> str:
    """Won, undecided or lost against plain sampling in the same time, and by which metrics; empty without a control."""
    contest = document["contests"].get(arm)
    if contest is None:
        return ""
    share = number(document["times"]["contests"][arm]["value"])
    who = f"{_CONTROL} ({contest['steps']} steps in {share} of its time)"
    deciding = {name: found for name, found in contest["differences"].items() if found["decides"]}
    if not deciding:
        return f"undecided against {who}, because no metric scores single pictures"
    found = ", ".join(f"{name} {change_text(difference)}" for name, difference in deciding.items())
    return f"{contest['outcome']} against {who}: {found}"


def verdict_text(document: Mapping[str, Any], arm: str, metric: str) -> str:
    """Outcome of the non-inferiority test in words, and whether the control is better; empty without a margin."""
    verdict = document["figures"][arm][metric]["verdict"]
    if verdict is None:
        return ""
    text = _OUTCOMES[verdict["outcome"]].format(number(verdict["margin"]))
    contest = document["contests"].get(arm)
    if contest is not None and contest["differences"][metric]["better"] == "control":
        text += f", but {_CONTROL} ({contest['steps']} steps) is better"
    return text


def measured_text(gate: Mapping[str, Any]) -> str:
    """What a gate measured: a figure or an outcome."""
    measured = gate["measured"]
    if measured is None or isinstance(measured, str):
        return measured or number(None)
    return f"{measured:.4g}"  # a digit more than elsewhere: a gate is often missed by little


def headline(document: Mapping[str, Any], arm: str) -> str:
    """One candidate in one sentence: speed, who won at equal time, each metric with a margin, and missed gates."""
    figures = document["figures"][arm]
    speed = f"{arm}: {speed_text(document, arm)} the baseline's speed"
    if at_knee := speed_text(document, arm, "speedup_knee"):
        speed += f" and {at_knee} the knee's"
    parts = [speed, contest_text(document, arm)]
    judged = {name: figure for name, figure in figures.items() if figure["verdict"] is not None}
    parts += [
        f"{name} {change_text(figure)} from the baseline ({verdict_text(document, arm, name)})"
        for name, figure in judged.items()
    ]
    if not judged:
        parts.append("no margin was set, so there is no verdict on the loss from the baseline")
    gates = [gate for gate in (*document["gates"], *document["times"]["gates"]) if gate["arm"] == arm]
    parts += [f"gate {gate['gate']} missed at {measured_text(gate)}" for gate in gates if not gate["held"]]
    return "; ".join(filter(None, parts))
