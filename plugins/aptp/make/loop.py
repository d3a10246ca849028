"""A training loop that resumes bit-identically. Its state is stored as safetensors, its curve as JSON lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, NonNegativeInt
from torch import Tensor, nn

from hasten.extend import CheckpointError, HastenError
from hasten.files import append_lines, read_records, write_atomically
from hasten.plugins.aptp.make.processes import average_gradients, rank, same_everywhere
from hasten.weights import check_fit, read_sealed_tensors, save_sealed_tensors

__all__ = ["Loop", "step_generators"]

_STATE, _CURVE = "state.safetensors", "curve.jsonl"
Loss = Callable[[int, torch.Generator, torch.Generator], tuple[Tensor, dict[str, float]]]


class _Noted(BaseModel):
    step: NonNegativeInt
    identity: str


def step_generators(seed: int, step: int) -> tuple[torch.Generator, torch.Generator]:
    """Two generators for one step: one that is equal in all processes, and one for the data of this process."""
    common = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    own = torch.Generator().manual_seed((seed * 1_000_003 + step + 7_919 * (rank() + 1) * 1_000_033) % 2**63)
    return common, own


@dataclass
class Loop:
    """AdamW over named parameters.

    Args:
        name: shown with the progress.
        parameters: what is trained, by name.
        loss: ``loss(step, common, own)`` returns the loss, (), and figures for the curve.
        folder: for state and curve.
        steps: number of steps of the whole run.
        rate: peak learning rate; it rises over the first 5 % and falls to a tenth along a half cosine.
        identity: the options of the run; a state with other options is refused.
        seed: of the generators of every step.
        save_every: steps between saved states.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    loss: Loss
    folder: Path
    steps: int
    rate: float
    identity: Mapping[str, Any]
    seed: int = 0
    save_every: int = 50

    def run(self, stop_after: int | None = None) -> None:
        """Train to the end, from the saved state if there is one.

        Args:
            stop_after: stop after this step; a later call continues.

        Raises:
            CheckpointError: the folder has the state of another run, or a damaged one.
            HastenError: the loss is not finite, or the processes have different parameters.
        """
        optimizer = torch.optim.AdamW(list(self.parameters.values()), lr=self.rate, weight_decay=0.0)
        self.folder.mkdir(parents=True, exist_ok=True)
        first = self._resume(optimizer)
        last = min(self.steps, stop_after or self.steps)
        began = time.perf_counter()
        for step in _progress(self.name, first, last, self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self._rate(step)
            value, figures = self.loss(step, *step_generators(self.seed, step))
            if not bool(value.isfinite()):
                raise HastenError(
                    f"{self.name}: the loss is {float(value)} at step {step}; lower --learning-rate"
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            average_gradients(self.parameters.values())
            nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
            optimizer.step()
            self._log(step + 1, {"loss": float(value.detach()), **figures}, time.perf_counter() - began)
            if (step + 1) % self.save_every == 0 or step + 1 == last:
                self._save(step + 1, optimizer)

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.steps // 20))
        return self.rate * warm * (0.55 + 0.45 * math.cos(math.pi * step / max(1, self.steps)))

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in self.parameters.items():
            if not same_everywhere(parameter):
                raise HastenError(
                    f"{self.name}: the processes disagree on {name} at step {step}; restart them"
                )
        if rank() != 0:
            return
        tensors = {f"parameter.{name}": value.detach() for name, value in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        about = {"step": str(step), "identity": json.dumps(dict(self.identity), sort_keys=True)}
        save_sealed_tensors(self.folder / _STATE, tensors, about)

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        file = self.folder / _STATE
        if not file.exists():
            self._cut_curve(0)  # of a run that was killed before its first state
            return 0
        remedy = "choose another folder or delete it"
        noted, tensors = read_sealed_tensors(file, _Noted, remedy)
        wanted = json.dumps(dict(self.identity), sort_keys=True)
        if noted.identity != wanted:
            raise CheckpointError(
                f"{file} belongs to another run ({noted.identity}, wanted {wanted}); {remedy}"
            )
        given = {name: tensors.get(f"parameter.{name}") for name in self.parameters}
        check_fit(
            self.parameters, {k: v for k, v in given.items() if v is not None}, "this run", file, remedy
        )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
                prefix = f"optimizer.{name}."
                kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                if kept:  # none before the parameter's first gradient
                    moments = {"exp_avg": parameter, "exp_avg_sq": parameter}
                    expected = {"step": torch.zeros(()), **moments}
                    check_fit(expected, kept, f"the optimizer of {name}", file, remedy)
                    optimizer.state[parameter] = kept
        step = noted.step
        self._cut_curve(step)
        return step

    def _log(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        if rank() != 0:
            return
        record = {
            "step": step,
            **{k: round(float(v), 6) for k, v in figures.items()},
            "seconds": round(seconds, 2),
        }
        append_lines(self.folder / _CURVE, [record])

    def _cut_curve(self, step: int) -> None:
        curve = self.folder / _CURVE
        if rank() == 0 and curve.exists():
            kept = [r for r in read_records(curve) if isinstance(r.get("step"), int) and r["step"] <= step]
            write_atomically(curve, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _progress(name: str, first: int, last: int, total: int) -> Iterator[int]:
    from hasten.commands import showing_progress

    with showing_progress(quiet=rank() != 0) as tell:
        for step in range(first, last):
            yield step
            tell(name, step + 1, total)
