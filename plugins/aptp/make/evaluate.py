"""The comparison every bundle has to stand: the base, one static expert, random routing, fewer steps at equal time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hasten.commands import Config, Job, Placement
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.make.traffic import Traffic, save_traffic, traffic
from hasten.plugins.aptp.manifest import Manifest

__all__ = ["ROUTED", "Comparison", "compare", "configurations", "static_expert"]

ROUTED = 512
"""Prompts that are routed to see where they go; fewer of them are drawn."""


def static_expert(manifest: Manifest) -> int:
    """The expert (or route) whose cost is nearest to the mean cost of routing."""
    mean = sum(route.traffic * route.macs_share for route in manifest.choices)
    shares = [route.macs_share for route in manifest.choices]
    return min(range(len(shares)), key=lambda number: abs(shares[number] - mean))


def configurations(bundle: Bundle) -> dict[str, Config]:
    """Routed, static and random configurations of one bundle. Fewer steps at equal time come with every comparison."""
    options = {"bundle": bundle.place}
    static = {**options, "route": "static", "expert": static_expert(bundle.manifest)}
    random = {**options, "route": "random"}
    return {
        "aptp": Config.of({"aptp": options}),
        "static expert": Config.of({"aptp": static}),
        "random routing": Config.of({"aptp": random}),
    }


@dataclass(frozen=True)
class Comparison:
    """What to compare a bundle on.

    Args:
        model: name or folder of the pipeline.
        prompts: file of prompts; ``None`` for a miniature's own.
        count: pictures of each row.
        batch_size: prompts per pipeline call.
        fewer_steps: steps of the equal-time control; ``None`` measures first.
        seed: of the first picture.
        place: device and number format.
    """

    model: str
    prompts: Path | None
    count: int
    batch_size: int
    fewer_steps: int | None
    seed: int
    place: Placement


def compare(wanted: Comparison, folder: Path, out: Path) -> list[Traffic]:
    """Run the comparison and write its report (see ``hasten compare``), and where the prompts go.

    Args:
        wanted: what to compare on.
        folder: of the bundle.
        out: folder of the comparison.

    Returns:
        Where :data:`ROUTED` prompts go, by kind of prompt; also in ``traffic.json``.
    """
    from hasten import commands as common
    from hasten.eval.commands import options
    from hasten.eval.commands.perform import perform
    from hasten.eval.compare.analysis import Settings
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.run import Request

    bundle, model, place = Bundle.load(folder), wanted.model, wanted.place
    candidates = configurations(bundle)
    first = next(iter(candidates.values()))
    limit = max(wanted.count, ROUTED)
    routed = common.choose_prompts(model, first, None, wanted.prompts, limit, wanted.seed)
    rows = traffic(common.load_quietly(model, place), bundle, routed)
    save_traffic(rows, out)
    texts = routed[: wanted.count]
    job = Job(texts, wanted.seed, common.call_arguments(model, first, {}), wanted.batch_size)
    metrics = options.build_metrics(options.default_metrics(texts), [], place.device)
    fewer = {} if wanted.fewer_steps is None else dict.fromkeys(candidates, wanted.fewer_steps)
    request = Request(model, job, candidates, fewer, dtype=place.dtype)
    evaluation = Evaluation(metrics, None, Settings(0.95, wanted.seed, {}), ())
    perform(request, evaluation, out, place.device)
    return rows
