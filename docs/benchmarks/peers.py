"""Writes ``peers.md`` from ``peers-*.json``; ``python docs/benchmarks/peers.py OUT ...`` takes runs over first.

Each ``OUT`` is the folder of a ``hasten bench peers``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from hasten.eval.bench.peers.page import page

HERE = Path(__file__).parent
PICTURES = HERE.parent / "images"


def take_over(out: Path) -> None:
    """Copy a run's figures and its first picture that shows a metric with a margin."""
    document = json.loads((out / "peers.json").read_text("utf-8"))
    name = f"peers-{document['model'].rpartition('/')[2]}"
    shutil.copyfile(out / "peers.json", HERE / f"{name}.json")
    shutil.copyfile(out / f"sweep-{next(iter(document['margins']))}.png", PICTURES / f"{name}.png")


def rendered() -> str:
    """The page."""
    files = sorted(HERE.glob("peers-*.json"))
    documents = [json.loads(file.read_text("utf-8")) for file in files]
    pictures = {
        document["model"]: f"../images/{file.stem}.png"
        for document, file in zip(documents, files, strict=True)
    }
    return page(documents, pictures)


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        take_over(Path(folder))
    (HERE / "peers.md").write_text(rendered(), "utf-8")
