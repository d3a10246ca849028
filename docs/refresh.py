"""Rewrite what the documentation shows of measurements, from the files the measurements left behind.

First the command at the top of ``examples/accelerated.yaml``, then ``python docs/refresh.py out/compare``. A test fails
when the README and the committed figures disagree, so no number in it is ever typed by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from hasten.eval.compare.wording import forwards_text, headline
from hasten.eval.statistics import NO_DISCORDANT

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "benchmarks" / "miniature.json"
PICTURE = ROOT / "docs" / "images" / "miniature.png"
README = ROOT / "README.md"


def distilled(report: dict[str, Any]) -> dict[str, Any]:
    """What the documentation needs of a ``report.json``: figures and times, no picture or prompt of its own."""
    times = report["times"]
    return {
        **{
            key: report[key]
            for key in ("model", "seed", "call", "batch_size", "settings", "figures", "about")
        },
        "prompts": len(report["prompts"]),
        "arms": [
            {**arm, **{key: times["arms"][arm["name"]][key]["value"] for key in ("speedup", "seconds")}}
            for arm in report["arms"]
        ],
        "verdicts": [headline(report, arm["name"]) for arm in report["arms"] if arm["role"] == "candidate"],
        "forwards": {name: forwards_text(report, name) for name in report["steps"]},
        "command": times["command"],
        "created": times["created"],
    }


def results(document: dict[str, Any]) -> str:
    """The results table of the README, in Markdown."""
    machine = document["about"]["machine"]
    lines = [
        "| | steps | s / image | wall-clock | FLOPs | attributes right: classifier | pixel parser | PSNR, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(arm, document["figures"][arm["name"]]) for arm in document["arms"]]
    lines += [
        "",
        f"{document['prompts']} prompts, `{document['model']}`, {machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, diffusers {machine['diffusers']}. Wall-clock: median over batches of the paired "
        "ratio. Attributes: share of what the prompts ask for, and the change from the baseline in points. PSNR: to "
        f"the baseline's picture. In brackets {100 * document['settings']['level']:g} % intervals.",
        "",
        *(f"> {verdict}." for verdict in document["verdicts"]),
        *(f"> Denoiser forwards by latent size: {text}." for text in document["forwards"].values()),
    ]
    return "\n".join(lines)


def _row(arm: dict[str, Any], figures: dict[str, Any]) -> str:
    plain, speed = arm["role"] == "baseline", arm["speedup"]
    cells = [
        arm["name"],
        str(arm["steps"]),
        f"{arm['seconds']:.3f}",
        "1" if plain else f"{speed['value']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}]",
        "1" if plain else f"{arm['flops_ratio']['value']:.2f}x less",
        *(_attributes(figures[metric]) for metric in ("mini_classifier", "mini_parser")),
        f"{figures['psnr']['value']['value']:.1f}" if "psnr" in figures else "",
    ]
    return "| " + " | ".join(cells) + " |"


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


def rendered(text: str, document: dict[str, Any]) -> str:
    """The README with its generated parts made anew."""
    for name, block in (("results", results(document)), ("example", example(document))):
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- /{name} -->",
            lambda _, name=name, block=block: f"<!-- {name} -->\n{block}\n<!-- /{name} -->",
            text,
            flags=re.DOTALL,
        )
    return text


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
    """Take over the figures and the picture of a comparison and rewrite the README."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    document = distilled(json.loads((source / "report.json").read_text("utf-8")))
    text = README.read_text("utf-8")
    document["example"] = run_example(text, source)
    for path in (FIGURES, PICTURE):
        path.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    shutil.copy(source / "grid.png", PICTURE)
    README.write_text(rendered(text, document), "utf-8")


if __name__ == "__main__":
    main()
