"""Traffic of the experts: their shares of the prompts, and mean cost, by kind of prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.pipelines.mini.scenes import PLACES, is_scene_caption, parse_caption
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.config import AptpConfig
from hasten.plugins.aptp.encoder import make_encoder
from hasten.plugins.aptp.router import BASE
from hasten.plugins.aptp.routing import decide

if TYPE_CHECKING:
    from hasten.extend import Pipeline

__all__ = ["Traffic", "kind_of", "save_traffic", "traffic"]


@dataclass(frozen=True)
class Traffic:
    """Where the prompts of one kind are routed.

    Args:
        kind: of the prompts.
        prompts: number of prompts.
        shares: share of the prompts for each expert (or route), the base last; they sum to 1.
        macs_share: mean share of the base's multiply-accumulates.
    """

    kind: str
    prompts: int
    shares: tuple[float, ...]
    macs_share: float


def kind_of(prompt: str) -> str:
    """Kind of a prompt: the objects of a scene caption, or the number of words of any other prompt."""
    if is_scene_caption(prompt):
        scene = parse_caption(prompt)
        if len(scene.groups) > 1:
            return "two different objects, with places"
        group = scene.groups[0]
        if group.count > 1:
            return "two or three equal objects"
        corner = 0.5 not in PLACES[group.place]
        return "one object in a corner" if corner else "one object in the centre or at a side"
    words = len(prompt.split())
    return "up to 8 words" if words <= 8 else "9 to 20 words" if words <= 20 else "more than 20 words"


def traffic(pipe: Pipeline, bundle: Bundle, prompts: Sequence[str]) -> list[Traffic]:
    """Route prompts and count them by kind, cheapest kind first. The last row counts all of them.

    Raises:
        UnsupportedError: the pipeline lacks the router's text encoder.
    """
    encoder = make_encoder(bundle.manifest.router.encoder, bundle.manifest.router.model, pipe)
    chosen = {prompt: decide(prompt, bundle, encoder, AptpConfig()).expert for prompt in prompts}
    kinds: dict[str, list[int]] = {}
    for prompt in prompts:
        kinds.setdefault(kind_of(prompt), []).append(chosen[prompt])
    rows = [_row(kind, experts, bundle) for kind, experts in kinds.items()]
    return [*sorted(rows, key=lambda row: row.macs_share), _row("all", list(chosen.values()), bundle)]


def save_traffic(rows: Sequence[Traffic], folder: Path) -> None:
    """Write ``traffic.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traffic.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")


def _row(kind: str, experts: Sequence[int], bundle: Bundle) -> Traffic:
    costs = {number: route.macs_share for number, route in enumerate(bundle.manifest.choices)} | {BASE: 1.0}
    shares = tuple(experts.count(number) / len(experts) for number in costs)
    return Traffic(kind, len(experts), shares, sum(costs[number] for number in experts) / len(experts))
