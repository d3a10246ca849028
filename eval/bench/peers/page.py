"""The benchmark in Markdown, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hasten.eval.bench.peers.arms import OURS, PLAIN

__all__ = ["page", "section"]

_INTRODUCTION = """# Against other packages

What else a user could pick: plain sampling with fewer steps, the caches that come with diffusers, cache-dit, and on
U-Nets DeepCache and ToMeSD. Everything runs on the same prompts and seeds, batch by batch in turn, each package at the
settings that its documentation recommends and over a small grid of its dial, from the reference's steps and from half
of them. `hasten` runs at its presets, and at configurations that are given.

{commands}

`tuned` is the fastest row of everyone that loses no more than the tolerance by the estimate, chosen on the same prompts
that it is judged on. This favours whoever has more rows; presets are not chosen. The speed is stated against the
fastest plain sampling within the tolerance. `docs/benchmarks/peers.py` writes this page from `peers-*.json`.
"""
_COMMANDS = """    pip install 'hasten[peers]'
    hasten bench peers mini/t2i-dit --out out/peers-t2i-dit
    python docs/benchmarks/peers.py out/peers-t2i-dit"""


def page(documents: Sequence[Mapping[str, Any]], pictures: Mapping[str, str] | None = None) -> str:
    """The page.

    Args:
        documents: of :func:`hasten.eval.bench.peers.document.judge_peers`.
        pictures: model -> path of its picture, from the page.
    """
    commands = "\n".join(f"    {document['about']['command']}" for document in documents) or _COMMANDS
    parts = [_INTRODUCTION.format(commands=commands)]
    parts += [section(document, (pictures or {}).get(document["model"])) for document in documents]
    return "\n".join(parts)


def section(document: Mapping[str, Any], picture: str | None = None) -> str:
    """What was measured on one model."""
    rows = {row["name"]: row for row in document["rows"]}
    metrics = list(document["margins"])
    machine = document["about"]["machine"]
    numbers = {peer["package"]: peer["version"] for peer in document["peers"].values() if peer["version"]}
    versions = ", ".join(f"{name} {number}" for name, number in numbers.items())
    tolerance = ", ".join(f"{value:g} of {name}" for name, value in document["margins"].items())
    lines = [f"## {document['model']}", ""]
    if picture is not None:
        lines += [f"![quality over time, {document['model']}]({picture})", ""]
    titles = ["", "", "setting", "s each", "against the fewest plain steps", *metrics]
    lines += [_line(titles), "|" + "---|" * len(titles)]
    lines += [_row(best, rows[best["name"]], metrics) for best in document["best"]]
    lines += [
        "",
        f"{document['prompts']} prompts, batches of {document['batch_size']}, {machine['processor']}, "
        f"{machine['threads']} threads, torch {machine['torch']}, {versions}. "
        f"Tolerance: {tolerance or 'none'}. In brackets {100 * document['level']:g} % intervals; quality with its "
        "change from the reference.",
        "",
        *(f"* {text}" for text in _findings(document)),
        *(f"* {text}." for text in document["warnings"]),
    ]
    if document["notes"]:
        lines += ["", "Left out:", "", *(f"* {note}" for note in document["notes"])]
    used = {row["owner"] for row in document["rows"]}
    about = {name: peer["about"] for name, peer in document["peers"].items() if name in used}
    lines += ["", *(f"* **{name}**: {text}." for name, text in about.items()), ""]
    return "\n".join(lines)


def _findings(document: Mapping[str, Any]) -> list[str]:
    """Who is fastest within the tolerance, where peers are faster than hasten or better, and who does not pay."""
    tuned = {best["owner"]: best for best in document["best"] if best["kind"] == "tuned"}
    seconds = {row["name"]: row["seconds"]["value"] for row in document["rows"]}
    ordered = sorted(tuned.values(), key=lambda best: seconds[best["name"]])
    found = [f"Fastest within the tolerance: {_told(ordered[0], seconds)}."]
    if OURS not in tuned:
        found.append("hasten has no row within the tolerance here.")
    ours = seconds[tuned[OURS]["name"]] if OURS in tuned else float("inf")
    faster = [best for best in ordered if best["owner"] != OURS and seconds[best["name"]] < ours]
    text = "; ".join(_told(best, seconds) for best in faster)
    found.append(f"Faster than hasten's fastest: {text or 'nobody'}.")
    slower = [
        best["owner"] for best in ordered if best["owner"] != PLAIN and best["against_knee"]["value"] < 1
    ]
    found.append(f"Slower than fewer plain steps: {', '.join(slower) or 'nobody'}.")
    owner = {row["name"]: row["owner"] for row in document["rows"]}
    for quantity in document["quantities"]:
        name = quantity["metric"]
        if name not in document["margins"]:
            continue
        front = [
            row["name"]
            for row in document["rows"]
            if row["owner"] not in (OURS, PLAIN)
            and name in row["figures"]
            and row["name"] not in document["dominated"][name]
        ]
        told = ", ".join(sorted(front, key=lambda row: seconds[row]))
        found.append(f"Rows of others that none beats in both time and {name}: {told or 'none'}.")
    without = [peer for peer in document["peers"] if peer in owner.values() and peer not in tuned]
    if without:
        found.append(f"Without a row within the tolerance: {', '.join(without)}.")
    return found


def _told(best: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    whose = "" if best["owner"] != OURS else "hasten, "
    return f"{whose}{best['name']} ({seconds[best['name']]:.3g} s)"


def _row(best: Mapping[str, Any], row: Mapping[str, Any], metrics: Sequence[str]) -> str:
    cells = [
        best["owner"],
        best["kind"],
        best["name"] + ("" if best["within"] else " (loses more)"),
        f"{row['seconds']['value']:.3g}",
        f"{best['against_knee']['value']:.2f}x{_ends(best['against_knee'])}",
        *(_quality(row, metric) for metric in metrics),
    ]
    return _line(cells)


def _quality(row: Mapping[str, Any], metric: str) -> str:
    value = f"{row['figures'][metric]['value']:.3g}"
    change = row["changes"].get(metric)
    return value if change is None else f"{value} ({change['value']:+.3f}{_ends(change, '+.3f')})"


def _ends(estimate: Mapping[str, Any], form: str = ".2f") -> str:
    low, high = estimate["low"], estimate["high"]
    return "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
