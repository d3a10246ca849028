"""Distils the base into the experts of finished plans: low-rank updates, or all of their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, Json
from torch import Tensor, nn

from hasten.extend import CheckpointError
from hasten.plugins.aptp.lora import DOWN, UP, update_cut
from hasten.plugins.aptp.make.context import Noisy, TrainingContext, features, relative_error
from hasten.plugins.aptp.make.loop import Loop
from hasten.plugins.aptp.make.options import TunedWeights, TuneOptions
from hasten.plugins.aptp.make.processes import rank
from hasten.plugins.aptp.make.search import Searched
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import pruned
from hasten.weights import check_fit, read_sealed_tensors, save_sealed_tensors

__all__ = ["Tuned", "Tuner", "tune"]

_FILE = "experts.safetensors"
_REMEDY = "run `hasten aptp tune` again"


class Tuner:
    """Trains all experts in one loop, in turns, so that an interruption leaves all equally trained.

    Args:
        context: pipeline, data and costs.
        searched: plans.
        options: of the training.
    """

    def __init__(self, context: TrainingContext, searched: Searched, options: TuneOptions) -> None:
        self.context, self.options = context, options
        self.models = [pruned(context.denoiser, context.structure, plan) for plan in searched.plans]
        generator = torch.Generator().manual_seed(options.seed)
        build = _everything if options.weights == "full" else _low_rank
        trained = [context.denoiser] if options.weights == "shared" else self.models
        self.updates = [build(model, options.rank, generator) for model in trained]
        self._cuts = [_update_cuts(self.updates[0], context, plan) for plan in searched.plans]

    def update(self, number: int) -> Mapping[str, Tensor]:
        """The update of expert ``number``, differentiable with respect to the trained tensors."""
        if self.options.weights != "shared":
            return self.updates[number]
        whole, result = self.updates[0], {}
        for name, cuts in self._cuts[number].items():
            value: Tensor = whole[name]
            for dimension, index in cuts:
                value = value.index_select(dimension, index.to(value.device))
            result[name] = value
        return result

    @torch.no_grad()
    def load(self, tuned: Tuned) -> None:
        """Set the trained tensors.

        Raises:
            CheckpointError: they belong to other plans or another kind of training.
        """
        flat = {f"{i}.{name}": v for i, tensors in enumerate(tuned.tensors) for name, v in tensors.items()}
        given = {name: flat[name] for name in self.parameters if name in flat}
        check_fit(self.parameters, given, "the plans of the search", f"tune/{_FILE}", _REMEDY)
        for update, tensors in zip(self.updates, tuned.tensors, strict=True):
            for name, parameter in update.items():
                parameter.copy_(tensors[name])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained tensors, by ``EXPERT.NAME``."""
        return {f"{i}.{name}": p for i, update in enumerate(self.updates) for name, p in update.items()}

    def loss(
        self,
        step: int,
        common: torch.Generator,  # noqa: ARG002
        own: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Distillation loss of one expert on one batch, (), and figures; one caption in ten is empty."""
        number = step % len(self.models)
        noisy = self.context.noisy(self.context.data.batch(self.options.batch, own, drop=0.1), own)
        base = self.context.denoiser
        with torch.no_grad(), features(base) as wanted:
            teacher = self.context.predict(base, noisy)
        model = self.models[number]
        with features(model) as found:
            student = self.predict(number, noisy)
        error = relative_error(student, teacher).mean()
        shared = [name for name in wanted if name in found]
        stages = torch.stack([relative_error(found[name], wanted[name]).mean() for name in shared]).cpu()
        truth = (student - noisy.truth).square().mean()
        loss = error + self.options.blocks * stages.mean() + self.options.truth * truth
        return loss, {"expert": float(number), "error": float(error.detach()), "truth": float(truth.detach())}

    def predict(self, number: int, noisy: Noisy) -> Tensor:
        """Prediction (B, C, h, w) of an expert with its update."""
        model = self.models[number]
        weights = applied(model, self.update(number))

        def call(**arguments: Any) -> Any:
            return torch.func.functional_call(model, weights, (), arguments)

        return self.context.predict(call, noisy)


@dataclass(frozen=True)
class Tuned:
    """Trained tensors as a bundle stores them.

    Args:
        weights: how they were trained.
        tensors: of each expert; one set for all if they are shared.
        about: the options of the training.
        plans: SHA-256 of the plans they belong to; empty in older files.
    """

    weights: TunedWeights
    tensors: tuple[dict[str, Tensor], ...]
    about: dict[str, Any]
    plans: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write ``experts.safetensors``."""
        flat = {f"{i}.{name}": v for i, tensors in enumerate(self.tensors) for name, v in tensors.items()}
        about = {"weights": self.weights, "experts": str(len(self.tensors)), "about": json.dumps(self.about)}
        about["plans"] = json.dumps(self.plans)
        save_sealed_tensors(folder / _FILE, flat, about)

    @classmethod
    def load(cls, folder: Path, searched: Searched | None = None) -> Tuned:
        """Read ``experts.safetensors``.

        Args:
            folder: its folder.
            searched: the plans it has to belong to; ``None`` skips the check.

        Raises:
            CheckpointError: it does not exist, is damaged, or belongs to other plans.
        """
        file = folder / _FILE
        if not file.exists():
            raise CheckpointError(f"no finished experts in {folder}; run `hasten aptp tune` first")
        noted, flat = read_sealed_tensors(file, _Noted, _REMEDY)
        tensors: tuple[dict[str, Tensor], ...] = tuple({} for _ in range(noted.experts))
        for name, value in flat.items():
            number, _, inner = name.partition(".")
            if number not in map(str, range(noted.experts)):
                raise CheckpointError(f"{file}: {name} belongs to none of {noted.experts} experts; {_REMEDY}")
            tensors[int(number)][inner] = value
        if searched is not None and noted.plans and noted.plans != searched.digests:
            raise CheckpointError(
                f"{file} was trained for plans that differ from those of the search; {_REMEDY}"
            )
        return cls(noted.weights, tensors, noted.about, noted.plans)


class _Noted(BaseModel):
    weights: TunedWeights
    experts: Annotated[int, Field(ge=1, le=10_000)]
    about: Json[dict[str, Any]]
    plans: Json[tuple[str, ...]] = ()


def tune(
    context: TrainingContext,
    searched: Searched,
    options: TuneOptions,
    folder: Path,
    *,
    stop_after: int | None = None,
) -> Tuned | None:
    """Train every expert. An interrupted run is continued.

    Args:
        context: pipeline and data.
        searched: plans of the experts.
        options: of the training.
        folder: for state, curve and result.
        stop_after: stop after this step, as an interruption would.

    Returns:
        The trained tensors, or ``None`` if the training was stopped before its end.
    """
    tuner = Tuner(context, searched, options)
    total = options.steps * len(searched.plans)
    identity = {"stage": "tune", **asdict(options), "plans": list(searched.digests)}
    loop = Loop("tune", tuner.parameters, tuner.loss, folder, total, options.rate, identity, options.seed)
    loop.run(stop_after)
    if stop_after is not None and stop_after < total:
        return None
    tensors = tuple({name: p.detach().clone() for name, p in update.items()} for update in tuner.updates)
    if options.weights == "full":
        tensors = tuple(
            {**dict(model.state_dict()), **update} for model, update in zip(tuner.models, tensors)
        )
    result = Tuned(options.weights, tensors, asdict(options), searched.digests)
    if rank() == 0:
        result.save(folder)
    return result


def _update_cuts(
    update: Mapping[str, Tensor], context: TrainingContext, plan: PruningPlan
) -> dict[str, list[tuple[int, Tensor]]]:
    """For each tensor of the base's update that a plan keeps: (dimension, channels that stay) of every cut."""
    plan = plan.without_whole(context.structure)
    dropped = tuple(f"{block}." for block in plan.dropped)
    found = {}
    for name in update:
        module, _, kind = name.rpartition(".")
        if not name.startswith(dropped):
            down = kind == DOWN
            found[name] = update_cut(context.denoiser, context.structure, plan, module, down=down)
    return found


def applied(model: nn.Module, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of ``model`` with an update, differentiable with respect to the update."""
    known = dict(model.named_parameters())
    weights: dict[str, Tensor] = {}
    for name, value in update.items():
        path, _, kind = name.rpartition(".")
        if kind == UP:
            continue
        if kind == DOWN:
            old = known[f"{path}.weight"]
            product = (update[f"{path}.{UP}"] @ value.flatten(1)).view(old.shape)
            weights[f"{path}.weight"] = (old.detach() + product).to(old.dtype)
        else:
            weights[name] = value.to(known[name].dtype)
    return weights


def _low_rank(model: nn.Module, rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Low-rank updates of all layers in which they are smaller than the weight, and all biases and norms."""
    update = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.startswith(("time_", "conv_in")):
            shape = module.weight.shape
            inner = shape[1:].numel()
            if rank * (shape[0] + inner) < shape[0] * inner:
                down = torch.randn(rank, *shape[1:], generator=generator) * inner**-0.5
                device = module.weight.device
                update[f"{name}.{DOWN}"] = nn.Parameter(down.to(device))
                update[f"{name}.{UP}"] = nn.Parameter(torch.zeros(shape[0], rank, device=device))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not name.startswith("time_"):
            update[name] = nn.Parameter(parameter.detach().clone().float())
    return update


def _everything(model: nn.Module, rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:  # noqa: ARG001
    return {name: nn.Parameter(p.detach().clone().float()) for name, p in model.named_parameters()}
