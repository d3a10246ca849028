"""Checkpoints of training runs, from which a run resumes bit-exactly."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten import CheckpointError
from hasten_miniatures.schedule import Schedule

__all__ = ["Average", "State", "read_average"]

_FILE = "checkpoint.pt"
_CONTENT = ("identity", "step", "seconds", "model", "optimizer", "average")


class Average:
    """Exponential moving average of the parameters and buffers of a model, with the warm-up ``(1 + n) / (10 + n)``.

    ``EMAModel`` of diffusers does not average buffers and starts its warm-up one step later, so its results would
    differ from the shipped weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Include the current weights of the model."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.detach(), weight)
            else:
                self.state[name].copy_(value)


@dataclass
class State:
    """The state of a training run.

    Args:
        identity: recipe, seed and schedule; a checkpoint with another identity is refused.
        model: the model in training.
        optimizer: its optimizer.
        average: its averaged weights.
        step: number of steps done.
        seconds: time of these steps.
    """

    identity: Mapping[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average
    step: int = 0
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Replace the checkpoint of the folder atomically."""
        state = {
            "identity": dict(self.identity),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state,
        }
        partial = folder / f"{_FILE}.part"
        torch.save(state, partial)
        os.replace(partial, folder / _FILE)

    def resume(self, folder: Path) -> None:
        """Load the checkpoint of the folder, if there is one.

        Raises:
            CheckpointError: it belongs to another run, or is damaged.
        """
        path = folder / _FILE
        if not path.exists():
            return
        state = _read(path, next(self.model.parameters()).device)
        _check_identity(path, state["identity"], self.identity, state["step"])
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        self.average.state = state["average"]
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        _cut_curve(folder, self.step)


def read_average(folder: Path) -> dict[str, Tensor]:
    """The averaged weights in the folder of a run.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; run `hasten mini train {folder.name}` first")
    average: dict[str, Tensor] = _read(path, torch.device("cpu"))["average"]
    return average


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """A complete checkpoint of :meth:`State.save`, verified by the checksums of the archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{member} does not match its checksum")
        state = torch.load(path, weights_only=True, map_location=device)
        missing = [name for name in _CONTENT if name not in state]
        if missing:
            raise KeyError(f"no {', '.join(missing)}")
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise _damaged(path, error) from error
    found: dict[str, Any] = state
    return found


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()
    return CheckpointError(
        f"{path} is damaged ({reason[0] if reason else type(error).__name__}); delete it to train anew"
    )


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
    # Steps after the checkpoint are repeated and must not appear in the curve twice.
    curve = folder / "curve.jsonl"
    if curve.exists():
        kept = [line for line in curve.read_text("utf-8").splitlines() if json.loads(line)["step"] <= step]
        curve.write_text("".join(line + "\n" for line in kept), "utf-8")
