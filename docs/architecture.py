"""Draw the layers of docs/architecture.md from the import graph: ``python docs/architecture.py``.

The graph is that of import-linter (grimp): imports inside functions count, those for type checkers alone do not.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
MINIATURES = ROOT / "examples" / "miniatures"
LAYERS = {
    "miniatures": "<b>hasten_miniatures</b><br>a separate distribution",
    "plugins": "<b>hasten.plugins</b><br>the techniques",
    "eval": "<b>hasten.eval</b><br>metrics, comparison, report",
    "pipelines": "<b>hasten.pipelines</b><br>VAR, Infinity, adapters, the flagship miniature",
    "host": "<b>hasten</b><br>the host, and its public modules extend, commands, files, weights, testing",
    "schedules": "<b>hasten.schedules</b><br>pure functions",
}
"""From the top down, with the text of their boxes."""
Arrows = dict[tuple[str, str], int]
_BLOCK = re.compile(r"(?<=<!-- layers -->\n).*?(?=<!-- /layers -->)", re.DOTALL)
_ARROW = re.compile(r"^    (\w+) -->\|(\d+)\| (\w+)$", re.MULTILINE)


def imports() -> Arrows:
    """How many modules of one layer import a module of another: (importer, imported) to count."""
    sys.path.insert(0, str(MINIATURES))
    try:
        graph = grimp.build_graph(
            "hasten", "hasten_miniatures", exclude_type_checking_imports=True, cache_dir=None
        )
    finally:
        sys.path.remove(str(MINIATURES))
    pairs = Counter(
        (layer(module), layer(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    )
    order = list(LAYERS)
    return {
        (a, b): pairs[a, b]
        for a, b in sorted(pairs, key=lambda pair: [order.index(end) for end in pair])
        if a != b
    }


def layer(module: str) -> str:
    """Which layer a module belongs to."""
    package, _, rest = module.partition(".")
    if package == "hasten_miniatures":
        return "miniatures"
    first = rest.partition(".")[0]
    return first if first in LAYERS else "host"


def upward(arrows: Arrows) -> list[tuple[str, str]]:
    """Arrows that point from a lower layer to a higher one."""
    order = list(LAYERS)
    return [(a, b) for a, b in arrows if order.index(a) > order.index(b)]


def drawn(arrows: Arrows) -> str:
    """The picture as a Mermaid block."""
    boxes = [f'    {name}["{text}"]' for name, text in LAYERS.items()]
    lines = [f"    {a} -->|{count}| {b}" for (a, b), count in arrows.items()]
    return "\n".join(["```mermaid", "flowchart TD", *boxes, *lines, "```", ""])


def read(page: str) -> Arrows:
    """The arrows of the picture that a page holds."""
    (block,) = _BLOCK.findall(page)
    return {(a, b): int(count) for a, count, b in _ARROW.findall(block)}


def main() -> None:
    """Write the picture into the page."""
    PAGE.write_text(_BLOCK.sub(drawn(imports()), PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
