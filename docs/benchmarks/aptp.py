"""Rewrite the tables of plugins/aptp/README.md from a comparison.

First ``hasten aptp eval mini/t2i-unet plugins/aptp/bundles/t2i-unet --out out/aptp``, then
``python docs/benchmarks/aptp.py out/aptp``. The figures stay in ``aptp.json`` beside this file; a test fails when the
README says something else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from refresh import distilled, results  # noqa: E402

FIGURES = HERE / "aptp.json"
README = HERE.parents[1] / "plugins" / "aptp" / "README.md"


def traffic_table(rows: list[dict[str, Any]], shares: list[float]) -> str:
    """Where prompts go, kind by kind, in Markdown."""
    columns = [f"expert {number} ({share:.0%})" for number, share in enumerate(shares)]
    lines = [
        "| prompts that ask for | prompts | "
        + " | ".join(columns)
        + " | base | mean share of the operations |",
        "|---|---|" + "---|" * (len(shares) + 2),
    ]
    for row in rows:
        cells = " | ".join(f"{share:.0%}" for share in row["shares"])
        lines.append(f"| {row['kind']} | {row['prompts']} | {cells} | {row['macs_share']:.1%} |")
    return "\n".join(lines)


def rendered(text: str, figures: dict[str, Any]) -> str:
    """The README with its tables made anew."""
    blocks = {
        "results": results(figures["comparison"]),
        "traffic": traffic_table(figures["traffic"], figures["shares"]),
    }
    for name, block in blocks.items():
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- /{name} -->",
            lambda _, name=name, block=block: f"<!-- {name} -->\n{block}\n<!-- /{name} -->",
            text,
            flags=re.DOTALL,
        )
    return text


def main(out: Path) -> None:
    """Keep the figures of a comparison and write them into the README."""
    comparison = distilled(json.loads((out / "report.json").read_text("utf-8")))
    options = next(arm["config"] for arm in comparison["arms"] if arm["role"] == "candidate")["techniques"][0]
    manifest = json.loads((Path(options["bundle"]) / "aptp.json").read_text("utf-8"))
    figures = {
        "comparison": comparison,
        "traffic": json.loads((out / "traffic.json").read_text("utf-8")),
        "shares": [route["macs_share"] for route in manifest["routes"] or manifest["experts"]],
    }
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", "utf-8")
    README.write_text(rendered(README.read_text("utf-8"), figures), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
