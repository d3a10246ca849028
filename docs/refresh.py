"""Rewrite what the documentation shows of measurements, from the files the measurements left behind.

``hasten demo --out out/demo`` first, then ``python docs/refresh.py out/demo``. A test fails when the README and the
committed figures disagree, so no number in it is ever typed by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "benchmarks" / "demo.json"
PICTURE = ROOT / "docs" / "images" / "demo.png"
README = ROOT / "README.md"


def results(document: dict[str, Any]) -> str:
    """The results table of the README, in Markdown."""
    machine = document["machine"]
    lines = [
        "| | steps | s / image | wall-clock | FLOPs | attributes right: classifier | pixel parser |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        plain = row is document["rows"][0]
        speed = row["speedup"]
        cells = [
            row["name"],
            str(row["steps"]),
            f"{row['seconds_per_image']:.3f}",
            "1" if plain else f"{speed['value']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}]",
            "1" if plain else f"{row['flops_ratio']:.2f}x less",
            _attributes(row["classifier"], plain),
            _attributes(row["parser"], plain),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{len(document['prompts'])} prompts, `{document['model']}`, {machine['processor']}, "
        f"{machine['threads']} threads, torch {machine['torch']}, diffusers {machine['diffusers']}. Speed: median over "
        "batches of the paired ratio; attributes: share of what the prompts ask for, and the change from the baseline "
        "in points; with 95 % intervals.",
    ]
    return "\n".join(lines)


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


def _attributes(figures: dict[str, Any], plain: bool) -> str:
    share, change = f"{100 * figures['right']['value']:.1f} %", figures["change"]
    if plain:
        return share
    return f"{share} ({100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}])"


def main() -> None:
    """Take over the figures and the picture of a demo run and rewrite the README."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    document = json.loads((source / "demo.json").read_text("utf-8"))
    text = README.read_text("utf-8")
    document["example"] = run_example(text, source)
    for path in (FIGURES, PICTURE):
        path.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    shutil.copy(source / "grid.png", PICTURE)
    README.write_text(rendered(text, document), "utf-8")


if __name__ == "__main__":
    main()
