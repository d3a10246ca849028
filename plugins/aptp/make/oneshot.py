"""Pruning without training: remove the units with the lowest second-order score, fit the rest by least squares.

Optimal Brain Surgeon for whole units, after OBS-Diff. For a layer with inputs ``X``, ``H = sum w X X^T`` over tokens
and noise levels, where the weight ``w`` falls from 1.2 at pure noise to 0.8 at the clean end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import Cut
from hasten.plugins.aptp.bundle import Expert, expert_entries, save_bundle
from hasten.plugins.aptp.lora import merge_update
from hasten.plugins.aptp.make.context import Noisy, TrainingContext
from hasten.plugins.aptp.make.options import ExportOptions, OneShotOptions
from hasten.plugins.aptp.make.router_fit import error_table, fit_router
from hasten.plugins.aptp.manifest import Manifest
from hasten.plugins.aptp.math import k_means, repair, unit_scores
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import channels, pruned

__all__ = ["Hessians", "collect", "cut_once", "repaired", "scores_of"]

_SAME = 0.9


class Hessians:
    """Weighted second moments of the inputs of layers.

    ``moments`` holds (in, in) for a linear layer, and (in x kernel positions, in x kernel positions) for a convolution,
    in the order of its flattened weight.
    """

    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}
        self.weight = 1.0
        """Weight of the forwards that follow."""

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A pre-hook that adds the inputs of the layer ``name``."""

        def add(layer: nn.Module, args: tuple[Any, ...]) -> None:
            inputs = args[0].detach().float()
            if isinstance(layer, nn.Conv2d):
                columns = _patches(inputs, layer).transpose(1, 2).flatten(0, 1)
            else:
                columns = inputs.flatten(0, -2)
            moment = columns.T @ columns * (self.weight / len(columns))
            self.moments[name] = self.moments.get(name, torch.zeros_like(moment)) + moment

        return add


@torch.no_grad()
def collect(context: TrainingContext, rows: Tensor, seed: int) -> Hessians:
    """Second moments of the inputs of every layer that reads units, over some prompts (row numbers of the data)."""
    hessians = Hessians()
    consumers = list(
        dict.fromkeys(c.module for n in context.gates.groups for c in context.structure.groups[n].consumers)
    )
    with ExitStack() as stack:
        for name in consumers:
            layer = context.denoiser.get_submodule(name)
            stack.enter_context(layer.register_forward_pre_hook(hessians.hook(name)))
        for number, index in enumerate(rows.split(4)):
            generator = torch.Generator().manual_seed(seed + number)
            noisy = context.noisy(context.data.rows(index.repeat(4)), generator)
            time = _mean_time(context, noisy.arguments)
            hessians.weight = 0.8 + 0.4 * math.log1p(9 * time) / math.log(10)
            context.predict(context.denoiser, noisy)
    return hessians


def scores_of(context: TrainingContext, hessians: Hessians, damping: float) -> Tensor:
    """Score of every gate (size,): the error of removing a unit per share of the cost it saves; infinite for blocks."""
    parts = []
    for name in context.gates.groups:
        group = context.structure.groups[name]
        ranks = [_layer_scores(context, hessians, cut, group.units, damping).cpu() for cut in group.consumers]
        # Joint attention has two consumers for one set of heads: scores are made comparable before they are added.
        total = torch.stack([scores / scores.sum().clamp_min(1e-20) for scores in ranks]).sum(0)
        energy = sum(float(scores.sum()) for scores in ranks)
        parts.append(total * energy)
    parts.append(torch.full((len(context.gates.blocks),), float("inf")))
    return torch.cat(parts) / context.gates.prices().clamp_min(1e-12)


def repaired(
    context: TrainingContext, hessians: Hessians, plan: PruningPlan, damping: float
) -> dict[str, Tensor]:
    """Fitted weights of the layers that read removed units, by parameter name, in the shapes of the pruned model."""
    tensors = {}
    for name in plan.kept:
        for cut in context.structure.groups[name].consumers:
            layer: Any = context.denoiser.get_submodule(cut.module)
            taps = layer.weight[0, 0].numel()
            kept = channels(context.structure, plan, context.denoiser, cut.module, "in")
            columns = (kept[:, None] * taps + torch.arange(taps)).flatten().to(layer.weight.device)
            solved = repair(
                layer.weight.detach().float().flatten(1), hessians.moments[cut.module], columns, damping
            )
            tensors[f"{cut.module}.weight"] = solved.view(
                len(layer.weight), len(kept), *layer.weight.shape[2:]
            )
    return tensors


def cut_once(
    context: TrainingContext, options: OneShotOptions, folder: Path, about: Mapping[str, Any]
) -> Manifest:
    """Cut experts for every cluster of prompts and every budget, fit a router to their errors, write the bundle.

    Clusters whose experts keep nearly the same units are merged, and the manifest notes how many.
    """
    count = min(options.prompts, len(context.data.latents))
    embeddings = context.data.embeddings[:count].float()
    made: list[Expert] = []
    merged = 0
    for rows in _clusters(embeddings, options.clusters, options.seed):
        hessians = collect(context, rows, options.seed)
        scores = scores_of(context, hessians, options.damping)
        plans = [context.gates.plan(scores, budget) for budget in options.budgets]
        if any(_overlap(context, plan, other.plan) > _SAME for plan, other in zip(plans, made)):
            merged += 1
            continue
        made += [Expert(plan, repaired(context, hessians, plan, options.damping)) for plan in plans]
    experts = tuple(sorted(made, key=lambda expert: context.costs.ratio(expert.plan)))
    fitting = ExportOptions(prompts=count, draws=1, seed=options.seed)
    errors = error_table(context, [_predictor(context, expert) for expert in experts], fitting).squeeze(-1)
    shares = torch.tensor([context.costs.ratio(expert.plan) for expert in experts])
    fitted = fit_router(embeddings, errors, shares, float(shares.mean()), seed=options.seed)
    facts = {**about, **asdict(options), "merged_clusters": merged, "errors": errors.mean(0).tolist()}
    entries = expert_entries(context.costs, [e.plan for e in experts], "lora", fitted.traffic.tolist())
    manifest = context.manifest(entries, {**facts, "budgets": list(options.budgets)})
    return save_bundle(folder, manifest, fitted.router, experts, context.denoiser)


def _predictor(context: TrainingContext, expert: Expert) -> Callable[[Noisy], Tensor]:
    model = pruned(context.denoiser, context.structure, expert.plan)
    merge_update(model, expert.tensors or {}, "one-shot expert")
    return partial(context.predict, model)


def _layer_scores(
    context: TrainingContext, hessians: Hessians, cut: Cut, units: int, damping: float
) -> Tensor:
    layer: Any = context.denoiser.get_submodule(cut.module)
    taps = layer.weight[0, 0].numel()
    weight = layer.weight.detach().float().flatten(1)
    columns = slice(cut.offset * taps, (cut.offset + units * cut.size) * taps)
    # The layer's other inputs stay as they are, so that the block of this group's columns decides.
    return unit_scores(
        weight[:, columns], hessians.moments[cut.module][columns, columns], cut.size * taps, damping
    )


def _patches(inputs: Tensor, layer: nn.Conv2d) -> Tensor:
    assert not isinstance(layer.padding, str)  # diffusers gives numbers
    return nn.functional.unfold(inputs, layer.kernel_size, 1, layer.padding, layer.stride)


def _mean_time(context: TrainingContext, arguments: Mapping[str, Any]) -> float:
    """Mean flow time, in [0, 1], of the samples of a forward."""
    layout, pipe = context.conditioner.layout, context.conditioner.target.pipe
    given = arguments[layout.timestep]
    times = [layout.level(pipe, {**arguments, layout.timestep: one}).time for one in given]
    return float(sum(times) / len(times))


def _clusters(embeddings: Tensor, count: int, seed: int) -> list[Tensor]:
    """Row numbers of each cluster of prompts."""
    standard = (embeddings - embeddings.mean(0)) / embeddings.std(0).clamp_min(1e-4)
    centres, nearest = k_means(standard, count, torch.Generator().manual_seed(seed))
    return [rows for k in range(len(centres)) if len(rows := (nearest == k).nonzero().flatten())]


def _overlap(context: TrainingContext, plan: PruningPlan, other: PruningPlan) -> float:
    """Share of the removed units that two plans have in common."""
    first, second = context.gates.of(plan) < 0.5, context.gates.of(other) < 0.5
    either = int((first | second).sum())
    return float((first & second).sum()) / either if either else 1.0
