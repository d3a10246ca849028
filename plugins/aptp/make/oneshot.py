"""Without training: cut by the second-order score of each unit and repair what stays by least squares.

Optimal Brain Surgeon for whole units: for a consumer layer with inputs ``X``, ``H = sum w X X^T`` over tokens and noise
levels, early levels weighing more (OBS-Diff: 1.2 down to 0.8). The lowest scores go, and the columns that stay are
solved for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import ConfigError, Cut
from hasten.plugins.aptp.bundle import Expert, expert_entries, save_bundle
from hasten.plugins.aptp.make.fit import fit_router
from hasten.plugins.aptp.make.study import Study, relative_error
from hasten.plugins.aptp.manifest import Manifest
from hasten.plugins.aptp.math import repair, unit_scores
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import channels, pruned

__all__ = ["Hessians", "OneShotOptions", "collect", "cut_once", "repaired"]

_SAME = 0.9


@dataclass(frozen=True)
class OneShotOptions:
    """How to cut.

    Args:
        budgets: cost of each expert, ascending.
        prompts: calibration prompts, four noise levels each.
        clusters: of prompts, each with experts of its own.
        damping: of the least-squares problems.
        seed: of the noise.
    """

    budgets: tuple[float, ...] = (0.8, 0.9)
    prompts: int = 128
    clusters: int = 1
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.budgets or not all(0 < b <= 1 for b in self.budgets) or self.clusters < 1:
            raise ConfigError(f"--budgets has to list shares between 0 and 1, not {list(self.budgets)}")


class Hessians:
    """Weighted second moments of the inputs of consumer layers: (in, in) of a linear layer, (in taps, in taps) of a
    convolution, whose columns are ordered as its flattened weight.
    """

    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}
        self.weight = 1.0

    def hook(self, name: str, module: Any) -> Any:
        """A pre-hook that adds what the layer is given."""

        def add(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs = args[0].detach().float()
            if isinstance(module, nn.Conv2d):
                inputs = _patches(inputs, module)
                columns = inputs.transpose(1, 2).flatten(0, 1)
            else:
                columns = inputs.flatten(0, -2)
            moment = columns.T @ columns * (self.weight / len(columns))
            self.moments[name] = self.moments.get(name, torch.zeros_like(moment)) + moment

        return add

    @contextmanager
    def watching(self, model: nn.Module, layers: list[str]) -> Iterator[None]:
        """Collect from some layers for the length of a ``with`` block."""
        handles = []
        for name in layers:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(self.hook(name, module)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def collect(study: Study, rows: Tensor, seed: int) -> Hessians:
    """Second moments of every consumer's inputs over some prompts."""
    hessians = Hessians()
    consumers = list(
        dict.fromkeys(c.module for n in study.space.groups for c in study.structure.groups[n].consumers)
    )
    with hessians.watching(study.denoiser, consumers):
        for number, index in enumerate(rows.split(4)):
            generator = torch.Generator().manual_seed(seed + number)
            noisy = study.noisy(study.data.rows(index.repeat(4)), generator)
            time = _mean_time(study, noisy.arguments)
            hessians.weight = 0.8 + 0.4 * math.log1p(9 * time) / math.log(10)
            study.predict(study.denoiser, noisy)
    return hessians


def scores_of(study: Study, hessians: Hessians, damping: float) -> Tensor:
    """Score of every gate (size,): units of groups by what they cost, relative to what they save; blocks stay."""
    parts = []
    for name in study.space.groups:
        group = study.structure.groups[name]
        ranks = [_layer_scores(study, hessians, cut, group.units, damping).cpu() for cut in group.consumers]
        # Joint attention has two consumers for one set of heads: scores are made comparable before they are added.
        total = torch.stack([scores / scores.sum().clamp_min(1e-20) for scores in ranks]).sum(0)
        energy = sum(float(scores.sum()) for scores in ranks)
        parts.append(total * energy)
    parts.append(torch.full((len(study.space.blocks),), float("inf")))
    return torch.cat(parts) / study.space.prices().clamp_min(1e-12)


def repaired(study: Study, hessians: Hessians, plan: PruningPlan, damping: float) -> dict[str, Tensor]:
    """Weights of the cut consumers, solved for on the inputs that stay: whole tensors by parameter name."""
    tensors = {}
    for name in plan.kept:
        for cut in study.structure.groups[name].consumers:
            layer: Any = study.denoiser.get_submodule(cut.module)
            taps = layer.weight[0, 0].numel()
            kept = channels(study.structure, plan, study.denoiser, cut.module, "in")
            columns = (kept[:, None] * taps + torch.arange(taps)).flatten().to(layer.weight.device)
            solved = repair(
                layer.weight.detach().float().flatten(1), hessians.moments[cut.module], columns, damping
            )
            tensors[f"{cut.module}.weight"] = solved.view(
                len(layer.weight), len(kept), *layer.weight.shape[2:]
            )
    return tensors


def cut_once(study: Study, options: OneShotOptions, folder: Path, about: Mapping[str, Any]) -> Manifest:
    """Cut experts for every cluster of prompts and budget, fit a router to their errors, write the bundle.

    Clusters whose experts keep nearly the same units are merged, and the manifest says so.
    """
    count = min(options.prompts, len(study.data.latents))
    embeddings = study.data.embeddings[:count].float()
    members = _clusters(embeddings, options.clusters, options.seed)
    plans: list[PruningPlan] = []
    tensors: list[dict[str, Tensor]] = []
    merged = 0
    for rows in members:
        hessians = collect(study, rows, options.seed)
        scores = scores_of(study, hessians, options.damping)
        chosen = [study.space.plan(scores, budget) for budget in options.budgets]
        if any(_overlap(study, plan, other) > _SAME for plan, other in zip(chosen, plans)):
            merged += 1
            continue
        plans += chosen
        tensors += [repaired(study, hessians, plan, options.damping) for plan in chosen]
    order = sorted(range(len(plans)), key=lambda i: study.costs.ratio(plans[i]))
    experts = tuple(Expert(plans[i], tensors[i]) for i in order)
    errors = _errors(study, experts, count, options.seed)
    shares = torch.tensor([study.costs.ratio(expert.plan) for expert in experts])
    fitted = fit_router(embeddings, errors, shares, float(shares.mean()), seed=options.seed)
    facts = {**about, **asdict(options), "merged_clusters": merged, "errors": errors.mean(0).tolist()}
    entries = expert_entries(study.costs, [e.plan for e in experts], "lora", fitted.traffic.tolist())
    manifest = study.manifest(entries, {**facts, "budgets": list(options.budgets)})
    return save_bundle(folder, manifest, fitted.router, experts, study.denoiser)


@torch.no_grad()
def _errors(study: Study, experts: tuple[Expert, ...], count: int, seed: int) -> Tensor:
    from hasten.plugins.aptp.lora import merge_update

    models = []
    for expert in experts:
        model = pruned(study.denoiser, study.structure, expert.plan)
        merge_update(model, expert.tensors or {}, "one-shot expert")
        models.append(model)
    table = torch.zeros(count, len(models))
    for index in torch.arange(count).split(8):
        generator = torch.Generator().manual_seed(seed + 10_000 + int(index[0]))
        noisy = study.noisy(study.data.rows(index.repeat(4)), generator)
        teacher = study.predict(study.denoiser, noisy)
        for number, model in enumerate(models):
            errors = relative_error(study.predict(model, noisy), teacher)
            table[index, number] = errors.view(4, -1).mean(0)
    return table


def _layer_scores(study: Study, hessians: Hessians, cut: Cut, units: int, damping: float) -> Tensor:
    layer: Any = study.denoiser.get_submodule(cut.module)
    taps = layer.weight[0, 0].numel()
    weight = layer.weight.detach().float().flatten(1)
    columns = slice(cut.offset * taps, (cut.offset + units * cut.size) * taps)
    # The layer's other inputs stay as they are, so that the block of this group's columns decides.
    return unit_scores(
        weight[:, columns], hessians.moments[cut.module][columns, columns], cut.size * taps, damping
    )


def _patches(inputs: Tensor, layer: Any) -> Tensor:
    return nn.functional.unfold(inputs, layer.kernel_size, 1, layer.padding, layer.stride)


def _mean_time(study: Study, arguments: Mapping[str, Any]) -> float:
    layout: Any = study.conditioner.target.layout
    told = arguments[layout.timestep]
    pipe = study.conditioner.target.pipe
    times = [layout.level(pipe, {**arguments, layout.timestep: told[i]}).time for i in range(len(told))]
    return sum(times) / len(times)


def _clusters(embeddings: Tensor, count: int, seed: int, rounds: int = 20) -> list[Tensor]:
    standard = (embeddings - embeddings.mean(0)) / embeddings.std(0).clamp_min(1e-4)
    generator = torch.Generator().manual_seed(seed)
    centres = standard[torch.randperm(len(standard), generator=generator)[:count]]
    for _ in range(rounds):
        nearest = torch.cdist(standard, centres).argmin(1)
        centres = torch.stack(
            [
                standard[nearest == k].mean(0) if bool((nearest == k).any()) else centres[k]
                for k in range(len(centres))
            ]
        )
    return [rows for k in range(len(centres)) if len(rows := (nearest == k).nonzero().flatten())]


def _overlap(study: Study, plan: PruningPlan, other: PruningPlan) -> float:
    """Share of the removed units that two plans have in common."""
    first, second = study.space.gates(plan) < 0.5, study.space.gates(other) < 0.5
    either = int((first | second).sum())
    return float((first & second).sum()) / either if either else 1.0
