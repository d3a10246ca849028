"""Learns which units each expert keeps, with hard gates at the layers that consume them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.extend import CheckpointError, Structure, UnsupportedError
from hasten.files import read_fields, seal, write_atomically
from hasten.plugins.aptp.gates import gated
from hasten.plugins.aptp.make.context import Noisy, TrainingContext, relative_error
from hasten.plugins.aptp.make.importance import importance
from hasten.plugins.aptp.make.loop import Loop
from hasten.plugins.aptp.make.options import SearchOptions
from hasten.plugins.aptp.make.processes import rank, world
from hasten.plugins.aptp.math import (
    contrastive,
    hard_gates,
    log_ratio,
    normalised_code,
    paper_gates,
    sinkhorn,
)
from hasten.plugins.aptp.plan import PlanFields, PruningPlan
from hasten.plugins.aptp.surgery import pruned

__all__ = ["Searched", "Searcher", "search"]

_FILE = "search.json"
_REMEDY = "run `hasten aptp search` again"
_TRIALS = 6
"""Number of batches on which the plans found are compared with the initial ones."""


@dataclass(frozen=True)
class Searched:
    """Result of a search.

    Args:
        plans: of each expert, cheapest first.
        shares: what they cost, as shares of the model's cost.
        about: the options of the search.
    """

    plans: tuple[PruningPlan, ...]
    shares: tuple[float, ...]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each plan."""
        return tuple(plan.digest for plan in self.plans)

    def save(self, folder: Path) -> None:
        """Write ``search.json``."""
        plans = [plan.to_dict() for plan in self.plans]
        write_atomically(folder / _FILE, seal({"plans": plans, "shares": self.shares, "about": self.about}))

    def check(self, structure: Structure, folder: Path) -> None:
        """Refuse plans of another model.

        Args:
            structure: of the model.
            folder: where the plans were read.

        Raises:
            CheckpointError: names the first unit that does not fit.
        """
        try:
            for plan in self.plans:
                plan.check(structure)
        except UnsupportedError as error:
            raise CheckpointError(
                f"{folder / _FILE} is the search of another model, or of another --ffn: {error}; {_REMEDY}"
            ) from error

    @classmethod
    def load(cls, folder: Path) -> Searched:
        """Read ``search.json``.

        Raises:
            CheckpointError: it does not exist, or is damaged.
        """
        file = folder / _FILE
        if not file.exists():
            raise CheckpointError(f"no finished search in {folder}; run `hasten aptp search` first")
        fields = read_fields(file, _Fields, "the search", _REMEDY, sealed=True)
        return cls(tuple(plan.plan() for plan in fields.plans), fields.shares, fields.about)


class _Fields(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    plans: Annotated[tuple[PlanFields, ...], Field(min_length=1)]
    shares: tuple[float, ...]
    about: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.plans) != len(self.shares):
            raise ValueError("every plan needs its share")
        return self


class Searcher(nn.Module):
    """Learns codes (K, D) of gate logits, and a predictor that assigns prompts to codes.

    Args:
        context: pipeline, data and costs.
        options: of the search.
        start: initial logits (K, D).
    """

    hidden = 32

    def __init__(self, context: TrainingContext, options: SearchOptions, start: Tensor) -> None:
        super().__init__()
        self.context, self.options = context, options
        generator = torch.Generator().manual_seed(options.seed)
        self.codes = nn.Parameter(start)
        width = context.data.embeddings.shape[1]
        paper = options.preset == "paper"
        outer = context.gates.size if paper else self.hidden
        self.predictor = nn.Parameter(torch.randn(outer, width, generator=generator) * width**-0.5)
        self.prototypes = nn.Parameter(torch.randn(len(start), self.hidden, generator=generator))
        if paper:
            self.prototypes.requires_grad_(False)
        embeddings = context.data.embeddings.float()
        self.mean, self.scale = embeddings.mean(0), embeddings.std(0).clamp_min(1e-4)
        self.targets = torch.tensor(options.budgets)

    def loss(
        self, step: int, common: torch.Generator, own: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step, (), and figures for the curve.

        Args:
            step: number of the step.
            common: generator that all processes share.
            own: generator of this process's data.
        """
        options = self.options
        drop = 0.0 if options.preset == "paper" else 0.1
        noisy = self.context.noisy(self.context.data.batch(options.batch, own, drop), own)
        with torch.no_grad():
            teacher = self.context.predict(self.context.denoiser, noisy)
        if options.preset == "paper":
            return self._paper(step, noisy, teacher, common)
        return self._improved(step, noisy, teacher, common, own)

    def gates(self, step: int, common: torch.Generator) -> Tensor:
        """Hard gates of every code (K, D). All processes draw the same noise."""
        uniform = torch.rand(self.codes.shape, generator=common).clamp(1e-6, 1 - 1e-6)
        progress = step / max(1, self.options.steps)
        temperature = 1.0 + (0.3 - 1.0) * progress
        # The noise fades, so that training ends on the plans that will be cut.
        logistic = (uniform.log() - (-uniform).log1p()) * 0.5 * (1 - progress)
        return self._alive(hard_gates(self.codes, temperature, logistic))

    def _improved(
        self, step: int, noisy: Noisy, teacher: Tensor, common: torch.Generator, own: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        gates = self.gates(step, common)
        experts = len(gates)
        chosen = torch.randint(experts, (len(teacher),), generator=own)
        student = self._student(noisy, gates[chosen])
        errors = relative_error(student, teacher)
        scores = self._scores(noisy.embeddings)
        shares = torch.softmax(scores / 0.1, -1)
        targets = sinkhorn(scores.detach(), across=world() > 1)
        assign = -(targets * torch.log_softmax(scores / 0.1, -1)).sum(-1).mean()
        # With experts drawn evenly this is an unbiased estimate of the error that the routing would cause.
        route = experts * (shares.gather(1, chosen[:, None])[:, 0] * errors.detach()).mean()
        ratio = self.context.gates.budget.soft_ratio(*self.context.gates.split(gates))
        budget = log_ratio(ratio, self.targets).mean()
        alike = contrastive(noisy.embeddings, shares @ normalised_code(gates, self._module_widths()))
        truth = (student - noisy.truth).square().mean()
        loss = errors.mean() + 0.2 * truth + 2.0 * budget + 0.1 * assign + route + 0.05 * alike
        figures = {"error": errors.mean(), "budget": budget, "assign": assign}
        figures |= {f"cost {number}": share for number, share in enumerate(ratio)}
        return loss, {name: float(value.detach()) for name, value in figures.items()}

    def _paper(
        self, step: int, noisy: Noisy, teacher: Tensor, common: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The losses of the paper. Gates act where units are read: before a group norm they would have no effect."""
        logits = F.linear(self._standard(noisy.embeddings), self.predictor)
        uniform = torch.rand(self.codes.shape, generator=common).clamp(1e-6, 1 - 1e-6)
        soft = paper_gates(self.codes, uniform)
        hard = (soft >= 0.5).to(soft) + (soft - soft.detach())
        predicted = normalised_code(paper_gates(logits, torch.full_like(logits, 0.5)), self._module_widths())
        codes = normalised_code(hard, self._module_widths())
        similarity = F.normalize(predicted, dim=-1) @ F.normalize(codes, dim=-1).T
        chosen = sinkhorn(similarity.detach(), across=world() > 1).argmax(1)
        warm = step < self.options.steps // 10
        used = paper_gates(logits, torch.full_like(logits, 0.5)) if warm else soft[chosen]
        student = self._student(noisy, self._alive(used))
        ratio = self.context.gates.budget.soft_ratio(*self.context.gates.split(self._alive(hard)))[chosen]
        budget = log_ratio(ratio.mean(), float(self.targets.mean()))
        truth, out = (student - noisy.truth).square().mean(), (student - teacher).square().mean()
        alike = contrastive(noisy.embeddings, predicted, rowwise=False)
        loss = truth + 0.2 * out + 2.0 * budget + 100.0 * alike
        if len(ratio) > 1:
            loss = loss - 0.1 * ratio.std() + 0.1 * (1 - ratio.max())
        figures = {"error": out, "budget": budget, "alike": alike, "cost": ratio.mean()}
        return loss, {name: float(value.detach()) for name, value in figures.items()}

    def _student(self, noisy: Noisy, gates: Tensor) -> Tensor:
        with gated(self.context.denoiser, self.context.structure, *self.context.gates.split(gates)):
            return self.context.predict(self.context.denoiser, noisy)

    def _alive(self, gates: Tensor) -> Tensor:
        """Gates with the best unit of every group open if all of the group are closed."""
        units, _ = self.context.gates.split(gates)
        add = []
        logits, _ = self.context.gates.split(self.codes.detach().expand(len(self.codes), -1))
        for name, values in units.items():
            best = F.one_hot(logits[name].argmax(-1), values.shape[-1]).to(values)
            best = best if len(best) == len(values) else best[:1].expand_as(values)
            add.append(best * (values.detach().amax(-1, keepdim=True) < 0.5))
        add.append(gates.new_zeros(*gates.shape[:-1], len(self.context.gates.blocks)))
        return gates + torch.cat(add, -1)

    def _scores(self, embeddings: Tensor) -> Tensor:
        hidden = F.linear(self._standard(embeddings), self.predictor)
        return F.normalize(hidden, dim=-1) @ F.normalize(self.prototypes, dim=-1).T

    def _standard(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / self.scale

    def _module_widths(self) -> Sequence[int]:
        return [*self.context.gates.widths, *[1] * len(self.context.gates.blocks)]


def search(
    context: TrainingContext, options: SearchOptions, folder: Path, *, stop_after: int | None = None
) -> Searched | None:
    """Search plans. An interrupted search is continued.

    Args:
        context: pipeline, data and costs.
        options: of the search.
        folder: for state, curve and result.
        stop_after: stop after this step, as an interruption would.

    Returns:
        The plans, or ``None`` if the search was stopped before its end.

    Raises:
        ConfigError: no plan meets a budget.
    """
    started, logits = _started(context, options)
    searcher = Searcher(context, options, logits)
    parameters = {n: p for n, p in searcher.named_parameters() if p.requires_grad}
    identity = {"stage": "search", **asdict(options), "size": context.gates.size}
    loop = Loop(
        "search", parameters, searcher.loss, folder, options.steps, options.rate, identity, options.seed
    )
    loop.run(stop_after)
    if stop_after is not None and stop_after < options.steps:
        return None
    plans = _plans(context, searcher.codes.detach(), options)
    if options.preset == "improved":
        plans = _better(context, plans, started, options)
    shares = tuple(context.gates.budget.ratio(plan) for plan in plans)
    about = {**asdict(options), "budgets": list(options.budgets), "world": world()}
    result = Searched(plans, shares, about)
    if rank() == 0:
        result.save(folder)
    return result


def _started(context: TrainingContext, options: SearchOptions) -> tuple[tuple[PruningPlan, ...], Tensor]:
    """Plans by the importance of units, and the logits (K, size) that a search starts from."""
    scores = importance(context, options.importance_batches, options.batch, options.seed)
    value = (scores / context.gates.prices().clamp_min(1e-9)).clamp_min(1e-30).log()
    # An impossible budget is refused here.
    plans = _plans(context, value.expand(len(options.budgets), -1), options)
    spread = ((value - value.mean()) / value.std().clamp_min(1e-9)).clamp(-2, 2)
    logits = torch.stack([2 * context.gates.of(plan) - 1 + 0.3 * spread for plan in plans])
    if options.preset == "paper":
        generator = torch.Generator().manual_seed(options.seed)
        logits = torch.zeros_like(logits).normal_(0, 0.02, generator=generator)
    return plans, logits


def _plans(context: TrainingContext, codes: Tensor, options: SearchOptions) -> tuple[PruningPlan, ...]:
    plans: list[PruningPlan] = []
    for code, budget in reversed(list(zip(codes, options.budgets))):
        if options.nested and plans:
            code = torch.where(context.gates.of(plans[-1]) > 0.5, code, code - 1e6)
        plans.append(context.gates.plan(code, budget))
    return tuple(reversed(plans))


@torch.no_grad()
def _better(
    context: TrainingContext,
    found: Sequence[PruningPlan],
    started: Sequence[PruningPlan],
    options: SearchOptions,
) -> tuple[PruningPlan, ...]:
    """For each budget the better of the found and the initial plan: a short search may end worse than it began."""
    totals = torch.zeros(2, len(found))
    for number in range(_TRIALS):
        generator = torch.Generator().manual_seed(options.seed + 1_000_000 + number)
        noisy = context.noisy(context.data.batch(options.batch, generator), generator)
        teacher = context.predict(context.denoiser, noisy)
        for row, plans in enumerate((found, started)):
            for column, plan in enumerate(plans):
                model = pruned(context.denoiser, context.structure, plan)
                totals[row, column] += relative_error(context.predict(model, noisy), teacher).mean()
    if options.nested:  # one chain or the other
        totals = totals.sum(1, keepdim=True).expand(2, len(found))
    return tuple(plans[int(best)] for plans, best in zip(zip(found, started), totals.argmin(0)))
