"""The training loop of all miniatures: seeded, bit-exact when resumed, with a curve on disk.

All randomness of step ``i`` comes from a generator that depends only on ``(seed, i)``, so a resumed run equals an
uninterrupted one without storing the state of a generator.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten import owned
from hasten_miniatures.checkpoints import Average, State
from hasten_miniatures.provenance import describe_hardware, has_record, write_record
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.warm_start import WarmStart

__all__ = ["Cadence", "Recipe", "step_generator", "train"]


class Recipe(ABC):
    """One miniature model: its architecture, its loss and its preview during training."""

    name: str
    schedule: Schedule

    @abstractmethod
    def build(self) -> nn.Module:
        """An untrained model; the caller has seeded torch."""

    @abstractmethod
    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step, and figures for the curve."""

    def refine(self) -> None:
        """Change the schedule for a run that refines a finished one: a lower peak and an early decay."""
        self.schedule = replace(
            self.schedule, learning_rate=0.6 * self.schedule.learning_rate, warmup=100, decay_from=0.2
        )

    def inherit(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load initial weights into an untrained ``model``."""
        model.load_state_dict(weights)

    @abstractmethod
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write pictures of the current state to ``folder``; returns figures for the curve."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


@dataclass(frozen=True)
class Cadence:
    """When a run saves, draws previews and stops.

    Args:
        save_every: steps between checkpoints; each replaces the previous one atomically.
        preview_every: steps between previews.
        stop_after: stop after this step; a later call resumes. ``None`` for the whole run.
    """

    save_every: int = 250
    preview_every: int = 1000
    stop_after: int | None = None


def train(
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    cadence: Cadence | None = None,
    command: str = "",
    begin_with: WarmStart | None = None,
) -> nn.Module:
    """Train ``recipe`` in ``folder``, resuming from its checkpoint if there is one.

    Args:
        recipe: the recipe.
        folder: receives ``checkpoint.pt``, ``curve.jsonl`` and preview pictures.
        seed: seed of initialisation and data.
        device: torch device.
        cadence: when to save, draw previews and stop.
        command: the command line, for the record of the finished run.
        begin_with: initial weights; random by default.

    Returns:
        The model with the averaged weights, in evaluation mode.

    Raises:
        CheckpointError: the folder contains a checkpoint of another recipe, schedule, seed or initial weights.
        ConflictError: another process trains in the folder.
    """
    cadence = cadence or Cadence()
    folder.mkdir(parents=True, exist_ok=True)
    with owned(folder):
        state, earlier = _start(recipe, seed, device, begin_with)
        state.resume(folder)
        total = recipe.schedule.steps
        _train(recipe, state, folder, cadence, seed)
        result = _averaged(recipe, state, device)
        if state.step == total and not has_record(folder):
            _log(folder, state, recipe.preview(result, folder, state.step))
            write_record(folder, _record(folder, state, device, command) | earlier)
        return result


def _train(recipe: Recipe, state: State, folder: Path, cadence: Cadence, seed: int) -> None:
    """Make the remaining steps."""
    began = time.perf_counter() - state.seconds
    total = recipe.schedule.steps
    last = min(total, cadence.stop_after or total)
    device = str(next(state.model.parameters()).device)
    for step in _progress(recipe.name, state.step, last, total):
        loss, figures = _advance(recipe, state.model, state.optimizer, step, seed)
        state.average.update(state.model, step)
        state.step, state.seconds = step + 1, time.perf_counter() - began
        if state.step % 10 == 0:
            _log(folder, state, {"loss": float(loss), **figures})
        if state.step % cadence.save_every == 0 or state.step == last:
            state.save(folder)
        if state.step % cadence.preview_every == 0 and state.step < total:
            _log(folder, state, recipe.preview(_averaged(recipe, state, device), folder, state.step))


def _start(
    recipe: Recipe, seed: int, device: str, begin_with: WarmStart | None
) -> tuple[State, dict[str, Any]]:
    """The state before the first step, and entries of the record about earlier runs."""
    torch.manual_seed(seed)
    model = recipe.build().to(device).train()
    schedule = recipe.schedule
    identity: dict[str, Any] = {"recipe": recipe.name, "seed": seed, "schedule": asdict(schedule)}
    earlier = {}
    if begin_with is not None:
        recipe.inherit(model, begin_with.weights)
        identity["begun_with"] = begin_with.record["command"]
        earlier["begun_with"] = begin_with.record
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    return State(identity, model, optimizer, Average(model, schedule.average)), earlier


def _advance(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """One optimizer step; returns the detached loss and the recipe's figures."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.schedule.rate(step)
    loss, figures = recipe.loss(model, step, step_generator(seed, step))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach(), figures


def _record(folder: Path, state: State, device: str, command: str) -> dict[str, Any]:
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text("utf-8").splitlines()]
    losses = [point["loss"] for point in curve if "loss" in point][-50:]
    shown = {key: value for key, value in curve[-1].items() if key not in ("step", "seconds")}
    return {
        "recipe": state.identity["recipe"],
        "command": command,
        "seed": state.identity["seed"],
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "hardware": describe_hardware(device),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "final": ({"loss": sum(losses) / len(losses)} if losses else {}) | shown,
    }


def _averaged(recipe: Recipe, state: State, device: str) -> nn.Module:
    with torch.random.fork_rng():
        model = recipe.build().to(device)
    model.load_state_dict(state.average.state)
    return model.eval().requires_grad_(False)


def _progress(name: str, start: int, last: int, total: int) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(
        range(start, last), description=name, total=total, completed=start, console=Console(stderr=True)
    )


def _log(folder: Path, state: State, figures: Mapping[str, float]) -> None:
    record = {"step": state.step, **figures, "seconds": state.seconds}
    rounded = {key: round(value, 6) for key, value in record.items()}
    with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
        curve.write(json.dumps(rounded) + "\n")
