"""Puts plans, trained experts and a fitted router into a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.plugins.aptp.bundle import Expert, expert_entries, save_bundle
from hasten.plugins.aptp.make.context import TrainingContext
from hasten.plugins.aptp.make.options import ExportOptions, TuneOptions
from hasten.plugins.aptp.make.router_fit import Fitted, error_table, fit_router, segment_routes
from hasten.plugins.aptp.make.search import Searched
from hasten.plugins.aptp.make.tune import Tuned, Tuner
from hasten.plugins.aptp.manifest import ExpertEntry, Manifest, RouteEntry

__all__ = ["export"]

Route = tuple[int, ...]
"""Number of the expert in each timestep segment, noisiest first."""


def export(
    context: TrainingContext,
    searched: Searched,
    tuned: Tuned,
    options: ExportOptions,
    folder: Path,
    about: Mapping[str, Any],
) -> Manifest:
    """Fit the router to the experts' errors and write the bundle.

    Args:
        context: pipeline and data.
        searched: plans of the experts.
        tuned: their weights.
        options: of the router's fit.
        folder: where to write.
        about: facts for the manifest.

    Raises:
        ConfigError: the mean cost cannot be met.
    """
    options = replace(options, prompts=min(options.prompts, len(context.data.latents)))
    tuner = Tuner(context, searched, TuneOptions(weights=tuned.weights, rank=tuned.about.get("rank", 4)))
    tuner.load(tuned)
    costs = torch.tensor(searched.shares)
    table = error_table(context, [partial(tuner.predict, i) for i in range(len(costs))], options)
    fitted, routes = _fitted(context, table, costs, options)
    facts = {**about, "search": searched.about, "tune": tuned.about}
    facts["mean_share"] = round(fitted.mean_share, 4)
    facts["errors"] = [round(float(error), 6) for error in table.mean((0, 2))]
    traffic = [*zip(routes, fitted.traffic)]
    manifest = context.manifest(_entries(context, searched, tuned, traffic), facts)
    if options.segments > 1:
        bounds = context.conditioner.segment_bounds(options.segments)
        chosen = _route_entries(context, searched, traffic)
        manifest = manifest.model_copy(update={"segments": bounds, "routes": chosen})
    shared = tuned.tensors[0] if tuned.weights == "shared" else None
    held = tuned.tensors if shared is None else (None,) * len(searched.plans)
    experts = tuple(Expert(plan, tensors) for plan, tensors in zip(searched.plans, held))
    return save_bundle(folder, manifest, fitted.router, experts, context.denoiser, shared)


def _fitted(
    context: TrainingContext, table: Tensor, costs: Tensor, options: ExportOptions
) -> tuple[Fitted, list[Route]]:
    """The router, and the routes that it chooses between."""
    routes: list[Route] = [(number,) for number in range(len(costs))]
    if options.segments > 1:
        routes = segment_routes(table.mean(0), costs)
    segments = range(options.segments)
    errors = torch.stack([table[:, list(route), segments].mean(1) for route in routes], 1)
    shares = torch.stack([costs[list(route)].mean() for route in routes])
    mean = options.mean_cost if options.mean_cost is not None else float(costs.mean())
    embeddings = context.data.embeddings[: options.prompts]
    return fit_router(embeddings, errors, shares, mean, seed=options.seed), routes


def _entries(
    context: TrainingContext, searched: Searched, tuned: Tuned, traffic: Sequence[tuple[Route, Tensor]]
) -> tuple[ExpertEntry, ...]:
    """Manifest entries of the experts; with segments, their traffic is the mean over the segments."""
    used = torch.zeros(len(searched.plans))
    for route, share in traffic:
        used += share * torch.bincount(torch.tensor(route), minlength=len(used)) / len(route)
    entries = expert_entries(context.costs, searched.plans, tuned.weights, used.tolist())
    if searched.about.get("on") != "time":
        return entries
    timed = zip(entries, searched.shares)
    return tuple(entry.model_copy(update={"time_share": share}) for entry, share in timed)


def _route_entries(
    context: TrainingContext, searched: Searched, traffic: Sequence[tuple[Route, Tensor]]
) -> tuple[RouteEntry, ...]:
    macs = torch.tensor([context.costs.ratio(plan) for plan in searched.plans])
    return tuple(
        RouteEntry(experts=route, macs_share=float(macs[list(route)].mean()), traffic=float(share))
        for route, share in traffic
    )
