"""What training stages share: the pipeline, its data, noisy batches, and how far a student is from its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import PrunableUnits, Structure, Target
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.make.capture import Conditioner, target_of
from hasten.plugins.aptp.make.data import Batch, Prepared
from hasten.plugins.aptp.make.space import Space
from hasten.plugins.aptp.manifest import (
    BaseEntry,
    ExpertEntry,
    GrainEntry,
    Manifest,
    RouterEntry,
    SizeEntry,
    config_digest,
)
from hasten.plugins.aptp.timetable import TimeTable

__all__ = ["Noisy", "Study", "features", "relative_error"]

_LEVELS = 4
"""Different noise levels in one batch."""


@dataclass(frozen=True)
class Noisy:
    """A noisy batch: arguments of the forward, and what a perfect denoiser would predict (B, C, h, w)."""

    arguments: Mapping[str, Any]
    truth: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Study:
    """A pipeline with its prepared data and everything known of its units.

    Args:
        conditioner: makes forwards.
        data: prepared pictures.
        costs: multiply-accumulates of plans.
        space: gates, and what budgets are set on.
        grain: how fine units are.
    """

    conditioner: Conditioner
    data: Prepared
    costs: CostModel
    space: Space
    grain: GrainEntry

    @classmethod
    def of(cls, pipe: Any, data: Prepared, grain: GrainEntry, table: Path | None = None) -> Study:
        """Look at a pipeline; its denoiser is frozen and switched to evaluation.

        Args:
            pipe: the pipeline.
            data: prepared pictures.
            grain: how fine units are.
            table: folder of a latency table, for budgets on time instead of multiply-accumulates.
        """
        target = Target.of(pipe)
        units = target.capability(PrunableUnits)
        conditioner = Conditioner.of(target, data.size)
        denoiser = conditioner.denoiser.eval().requires_grad_(False)
        structure = units.structure(denoiser, grain.grain())
        text = int(next((v.shape[1] for v in data.conditions.values() if v.ndim == 3), 0))
        costs = CostModel(denoiser, units, structure, data.size, text)
        budget = costs if table is None else TimeTable.load(table, structure)
        return cls(conditioner, data, costs, Space(structure, budget), grain)

    @property
    def denoiser(self) -> Any:
        """The frozen base."""
        return self.conditioner.denoiser

    @property
    def structure(self) -> Structure:
        """Its units."""
        return self.space.structure

    def manifest(self, experts: tuple[ExpertEntry, ...], about: Mapping[str, Any]) -> Manifest:
        """What a bundle of these experts says of itself."""
        facts, size = self.data.about, self.data.size
        return Manifest(
            family=self.conditioner.target.adapter.family,
            base=BaseEntry(
                name=str(facts["model"]),
                denoiser=type(self.denoiser).__name__,
                config=config_digest(self.denoiser),
            ),
            grain=self.grain,
            size=SizeEntry(height=size.height, width=size.width, text=self.costs.text),
            router=RouterEntry(
                kind="prototypes", encoder=facts["router_encoder"], model=str(facts["router_model"])
            ),
            experts=experts,
            files={},
            about=dict(about),
        )

    def noisy(
        self, batch: Batch, generator: torch.Generator, low: float = 0.0, high: float = math.inf
    ) -> Noisy:
        """Add noise at a few random levels with flow times in [low, high)."""
        levels = self.conditioner.draw_between(min(_LEVELS, len(batch.latents)), generator, low, high)
        usable = len(batch.latents) // len(levels) * len(levels)
        clean = batch.latents[:usable]
        noise = torch.randn(clean.shape, generator=generator)
        each = usable // len(levels)
        alpha = torch.tensor([level.alpha for level in levels]).repeat_interleave(each).view(-1, 1, 1, 1)
        sigma = torch.tensor([level.sigma for level in levels]).repeat_interleave(each).view(-1, 1, 1, 1)
        conditions = {name: value[:usable] for name, value in batch.conditions.items()}
        arguments = self.conditioner.forward_arguments(alpha * clean + sigma * noise, conditions, levels)
        kind = self.conditioner.target.layout.prediction(self.conditioner.target.pipe)
        return Noisy(arguments, target_of(kind, clean, noise, alpha, sigma), batch.embeddings[:usable])

    def predict(self, model: Callable[..., Any], noisy: Noisy) -> Tensor:
        """Prediction of a model (B, C, h, w), float32 on the CPU, where losses and costs are; the model may be
        elsewhere.
        """
        from accelerate.utils import send_to_device  # type: ignore[import-untyped]

        like = next(self.denoiser.parameters())
        output = model(**send_to_device(dict(noisy.arguments), like.device), return_dict=False)
        return self.conditioner.prediction(output, noisy.truth.shape[1]).cpu().float()


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of each sample, as a share of the teacher's energy (B,), in float32."""
    student, teacher = student.float(), teacher.float()
    energy = teacher.square().flatten(1).mean(1).clamp_min(1e-8)
    return (student - teacher).square().flatten(1).mean(1) / energy


@contextmanager
def features(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Outputs of the stages of a denoiser, which pruning leaves in place, by name."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_children():
        parts = module.named_children() if isinstance(module, nn.ModuleList) else [("", module)]
        if name not in (
            "down_blocks",
            "mid_block",
            "up_blocks",
            "transformer_blocks",
            "single_transformer_blocks",
        ):
            continue
        for number, part in parts:
            handles.append(part.register_forward_hook(_keep(found, f"{name}.{number}")))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: dict[str, Tensor], name: str) -> Any:
    def hook(_: Any, __: Any, output: Any) -> None:
        found[name] = (
            output[-1]
            if isinstance(output, tuple) and isinstance(output[-1], Tensor)
            else (output[0] if isinstance(output, tuple) else output)
        )

    return hook
