"""Rewrite the tables in plugins/aptp/README.md that show where prompts go and what each expert can do.

    hasten aptp eval mini/t2i-unet plugins/aptp/bundles/t2i-unet --out out/aptp
    python docs/benchmarks/aptp.py traffic out/aptp    # where prompts go, as found by the command above
    python docs/benchmarks/aptp.py kinds               # generates with every expert, a few minutes on two cores

The comparison's table comes from ``python docs/refresh.py out/aptp aptp``. The figures stay in ``aptp_traffic.json``
and ``aptp_kinds.json`` beside this file; a test fails when the README says something else.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.extend import Pipeline

HERE = Path(__file__).parent
README = HERE.parents[1] / "plugins" / "aptp" / "README.md"
BUNDLE = README.parent / "bundles" / "t2i-unet"
MODEL = "mini/t2i-unet"
BASE = "base"
BATCH = 8


def figures_file(name: str) -> Path:
    """Where the figures of a table are kept."""
    return HERE / f"aptp_{name}.json"


def traffic_table(figures: dict[str, Any]) -> str:
    """Where prompts go, kind by kind, in Markdown."""
    columns = [f"expert {number} ({share:.0%})" for number, share in enumerate(figures["macs_shares"])]
    rows = (
        [
            row["kind"],
            str(row["prompts"]),
            *(f"{share:.0%}" for share in row["shares"]),
            f"{row['macs_share']:.1%}",
        ]
        for row in figures["traffic"]
    )
    return _table(["prompts that ask for", "prompts", *columns, BASE, "mean share of the operations"], rows)


def kinds_table(figures: dict[str, Any]) -> str:
    """Shares of the attributes that every expert gets right, kind by kind, in Markdown."""
    columns = [f"expert {number} ({share:.0%})" for number, share in enumerate(figures["macs_shares"])]
    rows = (
        [kind, str(figures["prompts"]), *(f"{cell['all']:.0%}, {cell['place']:.0%}" for cell in cells)]
        for kind, cells in figures["right"].items()
    )
    return _table(["prompts that ask for", "prompts", *columns, BASE], rows)


TABLES = {"traffic": traffic_table, "kinds": kinds_table}


def rendered(text: str, name: str, figures: dict[str, Any]) -> str:
    """The README with one table made anew."""
    block = f"<!-- {name} -->\n{TABLES[name](figures)}\n<!-- /{name} -->"
    return re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)


def publish(name: str, figures: dict[str, Any]) -> None:
    """Keep figures and write their table into the README."""
    figures_file(name).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    README.write_text(rendered(README.read_text("utf-8"), name, figures), "utf-8")


def macs_shares() -> list[float]:
    """Cost of the experts, or of the routes of a bundle with segments."""
    manifest = json.loads((BUNDLE / "aptp.json").read_text("utf-8"))
    return [choice["macs_share"] for choice in manifest["routes"] or manifest["experts"]]


def measured_kinds(prompts: int) -> dict[str, Any]:
    """What the classifier finds in ``prompts`` pictures of each kind, made with every expert from the same noise."""
    import hasten
    from hasten.pipelines import mini
    from hasten.plugins.aptp.make.traffic import kind_of

    captions: dict[str, list[str]] = {}
    for caption in mini.prompts(8 * prompts, seed=5):
        captions.setdefault(kind_of(caption), []).append(caption)
    pipe: Any = hasten.load(MODEL)
    pipe.set_progress_bar_config(disable=True)
    right: dict[str, list[dict[str, float]]] = {kind: [] for kind in sorted(captions)}
    for number in range(len(macs_shares())):
        with hasten.accelerate(pipe, {"aptp": {"route": "static", "expert": number}}):
            for kind, cells in right.items():
                cells.append(_right(pipe, captions[kind][:prompts]))
    for kind, cells in right.items():
        cells.append(_right(pipe, captions[kind][:prompts]))
    return {"prompts": prompts, "macs_shares": macs_shares(), "right": right}


def _right(pipe: Pipeline, captions: list[str]) -> dict[str, float]:
    import torch

    from hasten.pipelines import mini
    from hasten.pipelines.mini.scoring import AttributeScorer

    images: list[Any] = []
    for first in range(0, len(captions), BATCH):
        batch = captions[first : first + BATCH]
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(batch))]
        images += pipe(batch, generator=generators, **mini.recommended_call(MODEL)).images
    scores = AttributeScorer().score(images, captions)
    return {"all": scores.mean, "place": scores.by_attribute()["place"]}


def _table(titles: list[str], rows: Iterator[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:]])


def main() -> None:
    """Make one of the tables anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tables = parser.add_subparsers(dest="table", required=True)
    tables.add_parser("traffic").add_argument("out", type=Path, help="folder that `hasten aptp eval` wrote")
    tables.add_parser("kinds").add_argument("--prompts", type=int, default=48, help="of each kind")
    args = parser.parse_args()
    if args.table == "traffic":
        rows = json.loads((args.out / "traffic.json").read_text("utf-8"))
        publish("traffic", {"traffic": rows, "macs_shares": macs_shares()})
    else:
        publish("kinds", measured_kinds(args.prompts))


if __name__ == "__main__":
    main()
