"""What all training stages share: the pipeline, its data and units, noisy batches, and the error of a student."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hasten.extend import PrunableUnits, Structure, Target
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.latency_table import LatencyTable
from hasten.plugins.aptp.make.conditioner import Conditioner, target_of
from hasten.plugins.aptp.make.data import Batch, Prepared
from hasten.plugins.aptp.make.gate_layout import GateLayout
from hasten.plugins.aptp.manifest import (
    BaseEntry,
    ExpertEntry,
    GrainEntry,
    Manifest,
    RouterEntry,
    SizeEntry,
)

if TYPE_CHECKING:
    from hasten.extend import Pipeline

__all__ = ["Noisy", "TrainingContext", "features", "relative_error"]

_LEVELS = 4
"""Most noise levels in one batch."""
_STAGES = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")


@dataclass(frozen=True)
class Noisy:
    """A noisy batch: arguments of the forward, what a perfect denoiser predicts (B, C, h, w), embeddings (B, D)."""

    arguments: Mapping[str, Any]
    truth: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class TrainingContext:
    """A pipeline with its prepared data and its prunable units.

    Args:
        conditioner: builds the arguments of forwards.
        data: prepared pictures.
        costs: multiply-accumulates of plans.
        gates: order of the gates, and what budgets are shares of.
        grain: size of the units.
    """

    conditioner: Conditioner
    data: Prepared
    costs: CostModel
    gates: GateLayout
    grain: GrainEntry

    @classmethod
    def of(
        cls, pipe: Pipeline, data: Prepared, grain: GrainEntry, table: Path | None = None
    ) -> TrainingContext:
        """The context of a pipeline. Its denoiser is frozen and set to evaluation mode.

        Args:
            pipe: the pipeline.
            data: prepared pictures.
            grain: size of the units.
            table: folder of a latency table, if budgets are shares of time instead of multiply-accumulates.

        Raises:
            UnsupportedError: the family has no prunable units, or its denoiser cannot be pruned.
            CheckpointError: the latency table is missing, damaged or of other units.
        """
        target = Target.of(pipe)
        units = target.capability(PrunableUnits)
        conditioner = Conditioner.of(target, data.size)
        denoiser = conditioner.denoiser.eval().requires_grad_(False)
        structure = units.structure(denoiser, grain.grain())
        text = int(next((v.shape[1] for v in data.conditions.values() if v.ndim == 3), 0))
        costs = CostModel(denoiser, units, structure, data.size, text)
        budget = costs if table is None else LatencyTable.load(table, structure)
        return cls(conditioner, data, costs, GateLayout(structure, budget), grain)

    @property
    def denoiser(self) -> nn.Module:
        """The frozen base."""
        return self.conditioner.denoiser

    @property
    def structure(self) -> Structure:
        """Its units."""
        return self.gates.structure

    def manifest(self, experts: tuple[ExpertEntry, ...], about: Mapping[str, Any]) -> Manifest:
        """The manifest of a bundle with these experts."""
        facts = self.data.about
        router = RouterEntry(
            kind="prototypes", encoder=facts["router_encoder"], model=str(facts["router_model"])
        )
        return Manifest(
            family=self.conditioner.target.adapter.family,
            base=BaseEntry.of(self.denoiser, str(facts["model"])),
            grain=self.grain,
            size=SizeEntry.of(self.costs.size, self.costs.text),
            router=router,
            experts=experts,
            files={},
            about=dict(about),
        )

    def noisy(
        self, batch: Batch, generator: torch.Generator, low: float = 0.0, high: float = math.inf
    ) -> Noisy:
        """A batch with noise of at most four random levels, whose flow times lie in [low, high)."""
        levels = self.conditioner.draw_between(min(_LEVELS, len(batch.latents)), generator, low, high)
        usable = len(batch.latents) // len(levels) * len(levels)
        clean = batch.latents[:usable]
        noise = torch.randn(clean.shape, generator=generator)
        each = usable // len(levels)
        alpha = torch.tensor([level.alpha for level in levels]).repeat_interleave(each).view(-1, 1, 1, 1)
        sigma = torch.tensor([level.sigma for level in levels]).repeat_interleave(each).view(-1, 1, 1, 1)
        conditions = {name: value[:usable] for name, value in batch.conditions.items()}
        arguments = self.conditioner.forward_arguments(alpha * clean + sigma * noise, conditions, levels)
        kind = self.conditioner.layout.prediction(self.conditioner.target.pipe)
        return Noisy(arguments, target_of(kind, clean, noise, alpha, sigma), batch.embeddings[:usable])

    def predict(self, model: Callable[..., Any], noisy: Noisy) -> Tensor:
        """Prediction of a model (B, C, h, w), float32 on the CPU, where losses and costs are computed.

        Args:
            model: a denoiser on any device, or a call to one.
            noisy: the batch.
        """
        from accelerate.utils import send_to_device  # type: ignore[import-untyped]

        like = next(self.denoiser.parameters())
        output = model(**send_to_device(dict(noisy.arguments), like.device), return_dict=False)
        return self.conditioner.prediction(output, noisy.truth.shape[1]).cpu().float()


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of each sample (B,), float32, as a share of the mean square of the teacher's output."""
    student, teacher = student.float(), teacher.float()
    energy = teacher.square().flatten(1).mean(1).clamp_min(1e-8)
    return (student - teacher).square().flatten(1).mean(1) / energy


@contextmanager
def features(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Outputs of the stages of a denoiser, by name, filled by the forwards inside the ``with`` block.

    Pruning keeps the names and shapes of these outputs.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in model.named_children():
            parts = module.named_children() if isinstance(module, nn.ModuleList) else [("", module)]
            for number, part in parts if name in _STAGES else ():
                stack.enter_context(part.register_forward_hook(_keep(found, f"{name}.{number}")))
        yield found


def _keep(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Any], None]:
    def hook(_: nn.Module, __: object, output: Any) -> None:
        if isinstance(output, tuple):
            output = output[-1] if isinstance(output[-1], Tensor) else output[0]
        found[name] = output

    return hook
