"""Puts plans, trained experts and a fitted router into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.plugins.aptp.bundle import Expert, expert_entries, save_bundle
from hasten.plugins.aptp.make.fit import error_table, fit_router, segment_routes
from hasten.plugins.aptp.make.search import Searched
from hasten.plugins.aptp.make.study import Study
from hasten.plugins.aptp.make.tune import Tuned
from hasten.plugins.aptp.manifest import Manifest, RouteEntry

__all__ = ["ExportOptions", "export"]


@dataclass(frozen=True)
class ExportOptions:
    """How the router is fitted.

    Args:
        mean_cost: mean share of the base's multiply-accumulates; ``None`` is the middle of the experts'.
        prompts: calibration prompts.
        draws: noise draws for each of them, four levels in each.
        segments: timestep segments; from two on, the router chooses routes of one expert for each of them.
        seed: of the noise.
    """

    mean_cost: float | None = None
    prompts: int = 512
    draws: int = 2
    segments: int = 1
    seed: int = 0


def export(
    study: Study,
    searched: Searched,
    tuned: Tuned,
    options: ExportOptions,
    folder: Path,
    about: Mapping[str, Any],
) -> Manifest:
    """Fit the router on the experts' errors and write the bundle.

    Raises:
        ConfigError: the mean cost cannot be met.
    """
    prompts = min(options.prompts, len(study.data.latents))
    table = error_table(study, searched, tuned, prompts, options.draws, options.seed, options.segments)
    costs = torch.tensor(searched.shares)
    if options.segments > 1:
        routes = segment_routes(table.mean(0), costs)
    else:
        routes = [(number,) for number in range(len(costs))]
    segments = range(options.segments)
    errors = torch.stack([table[:, list(route), segments].mean(1) for route in routes], 1)
    shares = torch.stack([costs[list(route)].mean() for route in routes])
    macs = torch.tensor([study.costs.ratio(plan) for plan in searched.plans])
    mean = options.mean_cost if options.mean_cost is not None else float(costs.mean())
    fitted = fit_router(study.data.embeddings[:prompts], errors, shares, mean, seed=options.seed)
    facts = {
        **about,
        "search": searched.about,
        "tune": tuned.about,
        "mean_share": round(fitted.mean_share, 4),
        "errors": [round(float(e), 6) for e in table.mean((0, 2))],
    }
    used = torch.zeros(len(costs))
    for route, traffic in zip(routes, fitted.traffic):
        used += traffic * torch.bincount(torch.tensor(route), minlength=len(costs)) / options.segments
    entries = expert_entries(study.costs, searched.plans, tuned.weights, used.tolist())
    if searched.about.get("on") == "time":
        timed = zip(entries, searched.shares)
        entries = tuple(entry.model_copy(update={"time_share": share}) for entry, share in timed)
    manifest = study.manifest(entries, facts)
    if options.segments > 1:
        chosen = tuple(
            RouteEntry(experts=route, macs_share=float(macs[list(route)].mean()), traffic=float(traffic))
            for route, traffic in zip(routes, fitted.traffic)
        )
        bounds = study.conditioner.segment_bounds(options.segments)
        manifest = manifest.model_copy(update={"segments": bounds, "routes": chosen})
    if tuned.weights == "shared":
        experts, shared = tuple(Expert(plan) for plan in searched.plans), tuned.tensors[0]
    else:
        experts = tuple(Expert(plan, tensors) for plan, tensors in zip(searched.plans, tuned.tensors))
        shared = None
    return save_bundle(folder, manifest, fitted.router, experts, study.denoiser, shared)
