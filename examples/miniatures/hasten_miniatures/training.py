"""The training loop of every miniature: seeded, resumable to the bit, with a curve on disk.

All randomness of step ``i`` comes from a generator that is a pure function of ``(seed, i)``, so a run that was
killed and resumed equals an uninterrupted one without storing any generator state.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten import owned
from hasten_miniatures.checkpoints import Average, State
from hasten_miniatures.provenance import describe_hardware, has_record, write_record
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.warm_start import Beginning

__all__ = ["Recipe", "step_generator", "train"]


class Recipe(ABC):
    """One miniature model: how to build it, its loss, and what to look at while it learns."""

    name: str
    schedule: Schedule

    @abstractmethod
    def build(self) -> nn.Module:
        """A fresh model; the caller has seeded torch."""

    @abstractmethod
    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step and figures for the curve."""

    def refine(self) -> None:
        """Change the schedule to that of a second run on top of a finished one: a lower peak, falling from early on."""
        self.schedule = replace(
            self.schedule, learning_rate=0.6 * self.schedule.learning_rate, warmup=100, decay_from=0.2
        )

    def inherit(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Put the weights that a run begins with into its fresh ``model``."""
        model.load_state_dict(weights)

    @abstractmethod
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write pictures of the present state into ``folder``; returns figures for the curve."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    save_every: int = 250,
    preview_every: int = 1000,
    stop_after: int | None = None,
    command: str = "",
    begin_with: Beginning | None = None,
) -> nn.Module:
    """Train ``recipe`` in ``folder``, going on from its checkpoint if there is one.

    Args:
        recipe: what to train.
        folder: receives ``checkpoint.pt``, ``curve.jsonl`` and preview pictures.
        seed: of initialisation and data.
        device: torch device.
        save_every: steps between checkpoints; each replaces the last one atomically.
        preview_every: steps between preview pictures.
        stop_after: stop once this many steps are done (a later call goes on).
        command: what the user typed, for the record of the finished run.
        begin_with: weights to begin with instead of random ones.

    Returns:
        The model with the averaged weights, in evaluation mode.

    Raises:
        CheckpointError: if the folder holds a checkpoint of another recipe, schedule, seed or beginning.
        ConflictError: if another process trains in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with owned(folder):
        state, earlier = _start(recipe, seed, device, begin_with)
        state.resume(folder)
        began = time.perf_counter() - state.seconds
        total = recipe.schedule.steps
        last = min(total, stop_after or total)
        for step in _progress(recipe.name, state.step, last, total):
            loss, figures = _advance(recipe, state.model, state.optimizer, step, seed)
            state.average.update(state.model, step)
            state.step, state.seconds = step + 1, time.perf_counter() - began
            if state.step % 10 == 0:
                _log(folder, state, {"loss": float(loss), **figures})
            if state.step % save_every == 0 or state.step == last:
                state.save(folder)
            if state.step % preview_every == 0 and state.step < total:
                _log(folder, state, recipe.preview(_averaged(recipe, state, device), folder, state.step))
        result = _averaged(recipe, state, device)
        if state.step == total and not has_record(folder):
            _log(folder, state, recipe.preview(result, folder, state.step))
            write_record(folder, _record(folder, state, device, command) | earlier)
        return result


def _start(
    recipe: Recipe, seed: int, device: str, begin_with: Beginning | None
) -> tuple[State, dict[str, Any]]:
    """The state before the first step, and what the record has to say of an earlier run."""
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
