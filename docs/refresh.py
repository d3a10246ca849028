"""Rewrite what the documentation shows of comparisons, from the files the comparisons left behind.

``python docs/refresh.py OUT NAME`` takes the figures of the comparison in the folder ``OUT`` over into
``docs/benchmarks/NAME.json`` and rewrites the table of every page that holds ``<!-- figures: NAME -->``. The commands
stand at those places. ``miniature`` is the README's: its picture and the output of its example are made anew as well. A
test fails when a page and the committed figures disagree, so no number in it is ever typed by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.eval.compare.engine import AT_KNEE
from hasten.eval.compare.wording import forwards_text, headline, knee_text
from hasten.eval.statistics import NO_DISCORDANT

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks"
PICTURE = ROOT / "docs" / "images" / "miniature.png"
README = ROOT / "README.md"
EXAMPLE = "miniature"
"""Figures that go with a picture and with the output of the README's example."""
PAGES = (README, *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*/*.md"), *ROOT.glob("plugins/*/README.md"))
_TITLES = {
    "mini_classifier": "attributes right: classifier",
    "mini_parser": "pixel parser",
    "mini_motion": "motion right",
    "mini_video_classifier": "attributes right: classifier",
    "mini_video_parser": "pixel parser",
}
"""Metrics that are shown in shares, with their change in points."""


def distilled(report: dict[str, Any]) -> dict[str, Any]:
    """What the documentation needs of a ``report.json``: figures and times, no picture or prompt of its own."""
    times = report["times"]
    timed = [key for key in ("speedup", "speedup_knee", "seconds") if key in times["arms"]["baseline"]]
    return {
        **{
            key: report[key]
            for key in ("model", "seed", "call", "batch_size", "settings", "figures", "about")
        },
        "prompts": len(report["prompts"]),
        "arms": [
            {**arm, **{key: times["arms"][arm["name"]][key]["value"] for key in timed}}
            for arm in report["arms"]
        ],
        "knee": knee_text(report),
        "verdicts": [headline(report, arm["name"]) for arm in report["arms"] if arm["role"] == "candidate"],
        "forwards": {name: forwards_text(report, name) for name in report["steps"]},
        "command": times["command"],
        "created": times["created"],
    }


def results(document: dict[str, Any]) -> str:
    """A comparison as a table in Markdown."""
    machine = document["about"]["machine"]
    shares = [name for name in _TITLES if name in document["figures"]["baseline"]]
    kneed = ["against the knee"] if "speedup_knee" in document["arms"][0] else []
    titles = [
        "",
        "steps",
        "s each",
        "wall-clock",
        *kneed,
        "FLOPs",
        *(_TITLES[name] for name in shares),
        "PSNR, dB",
    ]
    lines = [_line(titles), "|" + "---|" * len(titles)]
    lines += [_row(arm, document["figures"][arm["name"]], shares) for arm in document["arms"]]
    lines += [
        "",
        f"{document['prompts']} prompts, `{document['model']}`, {machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, diffusers {machine['diffusers']}. Wall-clock: median over batches of the paired "
        "ratio. Shares of what the prompts ask for, and the change from the baseline in points. PSNR: to the "
        f"baseline's output. In brackets {100 * document['settings']['level']:g} % intervals.",
    ]
    candidates = [arm["name"] for arm in document["arms"] if arm["role"] == "candidate"]
    if len([name for name in candidates if not name.endswith(AT_KNEE)]) == 1:
        lines += ["", *(f"> {verdict}." for verdict in document["verdicts"])]
        lines += [f"> {text[0].upper()}{text[1:]}." for text in [document.get("knee")] if text]
        lines += [f"> Denoiser forwards by latent size: {text}." for text in document["forwards"].values()]
    return "\n".join(lines)


def _row(arm: dict[str, Any], figures: dict[str, Any], shares: list[str]) -> str:
    plain = arm["role"] == "baseline"
    cells = [
        arm["name"],
        f"{arm['steps']} ({arm['solver']})" if arm.get("solver") else str(arm["steps"]),
        f"{arm['seconds']:.3f}",
        "1" if plain else _speed(arm["speedup"]),
        *([_speed(arm["speedup_knee"])] if "speedup_knee" in arm else []),
        "1" if plain else f"{arm['flops_ratio']['value']:.2f}x less",
        *(_attributes(figures[metric]) for metric in shares),
        _decibels(figures["psnr"]["value"]) if "psnr" in figures else "",
    ]
    return _line(cells)


def _speed(speed: dict[str, Any]) -> str:
    return f"{speed['value']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}]"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _decibels(value: dict[str, Any]) -> str:
    return f"{value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def _attributes(figure: dict[str, Any]) -> str:
    share, change = f"{100 * figure['value']['value']:.1f} %", figure["change"]
    if change is None:
        return share
    if change["method"] == NO_DISCORDANT:
        return f"{share} (none differs, ±{100 * change['high']:.1f})"
    return f"{share} ({100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}])"


def example(document: dict[str, Any]) -> str:
    """What the first example of the README prints."""
    return "```\n" + document["example"].rstrip() + "\n```"


def rendered(text: str, name: str, document: dict[str, Any]) -> str:
    """A page with its generated parts made anew."""
    blocks = {f"figures: {name}": results(document)}
    if name == EXAMPLE:
        blocks["example"] = example(document)
    for marker, block in blocks.items():
        end = marker.split(":")[0]
        text = re.sub(
            rf"<!-- {marker} -->.*?<!-- /{end} -->",
            lambda _, marker=marker, block=block, end=end: f"<!-- {marker} -->\n{block}\n<!-- /{end} -->",
            text,
            flags=re.DOTALL,
        )
    return text


def shown() -> Iterator[tuple[Path, str]]:
    """Every page with the names of the figures it shows."""
    for page in PAGES:
        for name in re.findall(r"<!-- figures: (\S+) -->", page.read_text("utf-8")):
            yield page, name


def figures(name: str) -> Path:
    """Where figures are kept."""
    return BENCHMARKS / f"{name}.json"


def first_example(text: str) -> str:
    """The first Python block of the README."""
    return re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]  # type: ignore[index]


def run_example(text: str, folder: Path) -> str:
    """Execute the first example in ``folder`` and return what it printed."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(first_example(text), "README.md", "exec"), {})
    return printed.getvalue()


def main() -> None:
    """Take over the figures of a comparison and rewrite the pages that show them."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, name = Path(sys.argv[1]), sys.argv[2]
    pages = [page for page, shows in shown() if shows == name]
    if not pages:
        sys.exit(
            f"no page holds <!-- figures: {name} -->; there are {', '.join(sorted({n for _, n in shown()}))}"
        )
    document = distilled(json.loads((source / "report.json").read_text("utf-8")))
    if name == EXAMPLE:
        document["example"] = run_example(README.read_text("utf-8"), source)
        shutil.copy(source / "grid.png", PICTURE)
    figures(name).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    for page in pages:
        page.write_text(rendered(page.read_text("utf-8"), name, document), "utf-8")


if __name__ == "__main__":
    main()
