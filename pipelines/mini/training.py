"""The training loop of every miniature: seeded, resumable to the bit, with a curve on disk.

All randomness of step ``i`` comes from a generator that is a pure function of ``(seed, i)``, so a run that was
killed and resumed equals an uninterrupted one without storing any generator state.
"""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten._errors import CheckpointError
from hasten.pipelines.mini.provenance import describe_hardware, has_record, read_record, write_record

__all__ = ["Average", "Recipe", "Schedule", "step_generator", "train"]


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run.

    Args:
        steps: optimizer steps in all.
        learning_rate: peak, reached after ``warmup`` steps and held until ``decay_from`` of the run, then lowered
            along a half cosine to 2 % of itself.
        weight_decay: of AdamW.
        average: decay of the exponential moving average of the weights that is kept as the result; 0 for none.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    decay_from: float = 0.6
    weight_decay: float = 1e-3
    average: float = 0.999

    @property
    def plateau_ends(self) -> int:
        """First step of the decay; up to there a run can still be made longer or shorter."""
        return int(self.decay_from * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of ``step``."""
        progress = step / max(1, self.steps)
        tail = max(0.0, (progress - self.decay_from) / (1 - self.decay_from))
        return (
            self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.51 + 0.49 * math.cos(math.pi * tail))
        )


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

    @abstractmethod
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write pictures of the present state into ``folder``; returns figures for the curve."""


class Average:
    """Exponential moving average of a model's parameters and buffers, warmed up like ``(1 + n) / (10 + n)``."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's present weights."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.detach(), weight)
            else:
                self.state[name].copy_(value)


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
    begin_with: Path | None = None,
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
        begin_with: folder of a finished run of the same recipe whose averaged weights are the starting point.

    Returns:
        The model with the averaged weights, in evaluation mode.

    Raises:
        CheckpointError: if the folder holds a checkpoint of another recipe, schedule or seed, or ``begin_with``
            holds no finished run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = recipe.build().to(device).train()
    earlier = _load_average(model, begin_with) if begin_with is not None else None
    schedule = recipe.schedule
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    average = Average(model, schedule.average)
    identity: dict[str, Any] = {"recipe": recipe.name, "seed": seed, "schedule": asdict(schedule)}
    if earlier is not None:
        identity["begun_with"] = earlier["command"]
    start, seconds = _resume(folder, identity, model, optimizer, average)
    began = time.perf_counter() - seconds
    last = min(schedule.steps, stop_after or schedule.steps)
    for step in _progress(recipe.name, start, last, schedule.steps):
        loss, figures = _advance(recipe, model, optimizer, step, seed)
        average.update(model, step)
        done, seconds = step + 1, time.perf_counter() - began
        if done % 10 == 0:
            _log(folder, {"step": done, "loss": float(loss), **figures, "seconds": seconds})
        if done % save_every == 0 or done == last:
            _save(folder, identity, done, seconds, model, optimizer, average)
        if done % preview_every == 0 and done < schedule.steps:
            _preview(recipe, _averaged(recipe, average, device), folder, done, seconds)
    result = _averaged(recipe, average, device)
    if last == schedule.steps and not has_record(folder):
        _preview(recipe, result, folder, last, seconds)
        record = _record(folder, identity, model, seconds, device, command)
        write_record(folder, record | ({"begun_with": earlier} if earlier is not None else {}))
    return result


def _preview(recipe: Recipe, model: nn.Module, folder: Path, step: int, seconds: float) -> None:
    _log(folder, {"step": step, **recipe.preview(model, folder, step), "seconds": seconds})


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


def _record(
    folder: Path, identity: Mapping[str, Any], model: nn.Module, seconds: float, device: str, command: str
) -> dict[str, Any]:
    lines = (folder / "curve.jsonl").read_text("utf-8").splitlines()[-50:]
    columns: dict[str, list[float]] = {}
    for line in lines:
        for key, value in json.loads(line).items():
            columns.setdefault(key, []).append(value)
    return {
        "recipe": identity["recipe"],
        "command": command,
        "seed": identity["seed"],
        "steps": identity["schedule"]["steps"],
        "seconds": round(seconds, 1),
        "hardware": describe_hardware(device),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "final": {key: sum(c) / len(c) for key, c in columns.items() if key not in ("step", "seconds")},
    }


def _load_average(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Put the averaged weights of a finished run into ``model``; returns the run's record."""
    record = read_record(folder)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["average"])
    return record


def _averaged(recipe: Recipe, average: Average, device: str) -> nn.Module:
    with torch.random.fork_rng():
        model = recipe.build().to(device)
    model.load_state_dict(average.state)
    return model.eval().requires_grad_(False)


def _progress(name: str, start: int, last: int, total: int) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(
        range(start, last), description=name, total=total, completed=start, console=Console(stderr=True)
    )


def _log(folder: Path, record: Mapping[str, float]) -> None:
    rounded = {key: round(value, 6) for key, value in record.items()}
    with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
        curve.write(json.dumps(rounded) + "\n")


def _save(
    folder: Path,
    identity: Mapping[str, Any],
    step: int,
    seconds: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
) -> None:
    state = {
        "identity": dict(identity),
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state,
    }
    partial = folder / "checkpoint.pt.part"
    torch.save(state, partial)
    os.replace(partial, folder / "checkpoint.pt")


def _resume(
    folder: Path,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
) -> tuple[int, float]:
    """Load the folder's checkpoint; returns the steps done and the seconds they took."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    _check_identity(path, state["identity"], identity, state["step"])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.state = state["average"]
    _cut_curve(folder, state["step"])
    return int(state["step"]), float(state["seconds"])


def _check_identity(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], step: int) -> None:
    if stored == wanted:
        return
    schedules = [dict(identity["schedule"]) for identity in (stored, wanted)]
    on_plateau = all(step <= Schedule(**schedule).plateau_ends for schedule in schedules)
    for schedule in schedules:
        del schedule["steps"]
    others = [{**identity, "schedule": schedule} for identity, schedule in zip((stored, wanted), schedules)]
    if others[0] != others[1]:
        raise CheckpointError(
            f"{path} belongs to another run ({dict(stored)}, wanted {dict(wanted)}); "
            "choose another folder or delete it"
        )
    if not on_plateau:
        raise CheckpointError(
            f"{path}: at step {step} the learning rate has begun to fall in a run of {stored['schedule']['steps']} "
            f"steps; its length cannot become {wanted['schedule']['steps']} any more"
        )


def _cut_curve(folder: Path, step: int) -> None:
    # Steps after the checkpoint will be done again; without this they would stand in the curve twice.
    curve = folder / "curve.jsonl"
    if curve.exists():
        kept = [line for line in curve.read_text("utf-8").splitlines() if json.loads(line)["step"] <= step]
        curve.write_text("".join(line + "\n" for line in kept), "utf-8")
