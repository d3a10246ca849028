"""Compares a bundle with the base, one static expert, random routing, and fewer steps at equal time."""

from __future__ import annotations

from pathlib import Path

from hasten.commands import Config, Job, Placement
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.make.options import CompareOptions
from hasten.plugins.aptp.make.traffic import Traffic, save_traffic, traffic
from hasten.plugins.aptp.manifest import Manifest

__all__ = ["ROUTED", "compare", "configurations", "static_expert"]

ROUTED = 512
"""Number of prompts in the table of traffic; pictures are made of fewer."""


def static_expert(manifest: Manifest) -> int:
    """Number of the expert (or route) whose cost is nearest to the mean cost of routing."""
    mean = sum(route.traffic * route.macs_share for route in manifest.choices)
    shares = [route.macs_share for route in manifest.choices]
    return min(range(len(shares)), key=lambda number: abs(shares[number] - mean))


def configurations(bundle: Bundle) -> dict[str, Config]:
    """Configurations with the learned router, a static expert and random routing.

    Every comparison adds a row with fewer steps at equal time.
    """
    options = {"bundle": bundle.place}
    static = {**options, "route": "static", "expert": static_expert(bundle.manifest)}
    random = {**options, "route": "random"}
    return {
        "aptp": Config.of({"aptp": options}),
        "static expert": Config.of({"aptp": static}),
        "random routing": Config.of({"aptp": random}),
    }


def compare(model: str, folder: Path, options: CompareOptions, place: Placement, out: Path) -> list[Traffic]:
    """Run the comparison and write its report (see ``hasten compare``), and where prompts are routed.

    Args:
        model: name or folder of the pipeline.
        folder: the bundle.
        options: prompts, and how many pictures are made of them.
        place: device and number format.
        out: folder of the comparison.

    Returns:
        Where :data:`ROUTED` prompts are routed, by kind of prompt; also in ``traffic.json``.
    """
    from hasten import commands as common
    from hasten.eval.commands.options import build_metrics, default_metrics
    from hasten.eval.commands.perform import perform
    from hasten.eval.compare.analysis import Settings
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.run import Request

    bundle = Bundle.load(folder)
    candidates = configurations(bundle)
    first = next(iter(candidates.values()))
    limit = max(options.num_prompts, ROUTED)
    routed = common.choose_prompts(model, first, None, options.prompts, limit, options.seed)
    rows = traffic(common.load_quietly(model, place), bundle, routed)
    save_traffic(rows, out)
    texts = routed[: options.num_prompts]
    job = Job(texts, options.seed, common.call_arguments(model, first), options.batch_size)
    metrics = build_metrics(default_metrics(texts), [], place.device)
    fewer = {} if options.fewer_steps is None else dict.fromkeys(candidates, options.fewer_steps)
    request = Request(model, job, candidates, fewer, dtype=place.dtype)
    evaluation = Evaluation(metrics, None, Settings(0.95, options.seed, {}), ())
    perform(request, evaluation, out, place.device)
    return rows
