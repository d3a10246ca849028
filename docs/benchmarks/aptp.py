"""Rewrite the table in plugins/aptp/README.md that shows where prompts go.

First ``hasten aptp eval mini/t2i-unet plugins/aptp/bundles/t2i-unet --out out/aptp``, then
``python docs/benchmarks/aptp.py out/aptp``. The comparison's table comes from ``python docs/refresh.py out/aptp aptp``.
The figures stay in ``aptp_traffic.json`` beside this file; a test fails when the README says something else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = HERE / "aptp_traffic.json"
README = HERE.parents[1] / "plugins" / "aptp" / "README.md"
BUNDLE = README.parent / "bundles" / "t2i-unet"


def table(figures: dict[str, Any]) -> str:
    """Where prompts go, kind by kind, in Markdown."""
    columns = [f"expert {number} ({share:.0%})" for number, share in enumerate(figures["macs_shares"])]
    titles = ["prompts that ask for", "prompts", *columns, "base", "mean share of the operations"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in figures["traffic"]:
        cells = [row["kind"], str(row["prompts"]), *(f"{share:.0%}" for share in row["shares"])]
        lines.append("| " + " | ".join([*cells, f"{row['macs_share']:.1%}"]) + " |")
    return "\n".join(lines)


def rendered(text: str, figures: dict[str, Any]) -> str:
    """The README with its table made anew."""
    block = f"<!-- traffic -->\n{table(figures)}\n<!-- /traffic -->"
    return re.sub("<!-- traffic -->.*?<!-- /traffic -->", lambda _: block, text, flags=re.DOTALL)


def main(out: Path) -> None:
    """Keep what ``hasten aptp eval`` found and write it into the README."""
    manifest = json.loads((BUNDLE / "aptp.json").read_text("utf-8"))
    figures = {
        "traffic": json.loads((out / "traffic.json").read_text("utf-8")),
        "macs_shares": [choice["macs_share"] for choice in manifest["routes"] or manifest["experts"]],
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    README.write_text(rendered(README.read_text("utf-8"), figures), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
