"""Collects the rows of a report while a run goes on, and times forwards without making the device wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hasten._clock import Step

__all__ = ["Recorder", "Row", "Stopwatch"]


class Stopwatch:
    """Time of one forward: CUDA events on a CUDA device, the host's clock elsewhere.

    Args:
        device: device the forward computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._seconds = 0.0
        if device.type == "cuda":
            self._stream = torch.cuda.current_stream(device)
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record(self._stream)
        else:
            self._start = time.perf_counter()

    def stop(self) -> None:
        """End the measurement."""
        if self._events is not None:
            self._events[1].record(self._stream)
        else:
            self._seconds = time.perf_counter() - self._start

    @property
    def on_device(self) -> bool:
        """Whether the device itself measures."""
        return self._events is not None

    def milliseconds(self) -> float:
        """The measured time. Waits for the device, so ask only after the run."""
        if self._events is None:
            return self._seconds * 1e3
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1]))


@dataclass
class Row:
    """What is known of one denoiser forward so far."""

    run: int
    denoiser: str
    step: Step
    resolution: tuple[int, ...] | None = None
    """Latent extent the denoiser computed at; ``None`` while it has not computed anything."""
    stopwatch: Stopwatch | None = None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    later: list[tuple[str, Callable[[], Mapping[str, Any]]]] = field(default_factory=list)
    """Facts that are asked for when the report is made."""


class Recorder:
    """The rows of one call of the user's pipeline, over all of its runs."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.runs = 0
        self.start = time.perf_counter()

    def begin_run(self) -> None:
        """Rows from here on belong to a new run."""
        self.runs += 1

    def begin_row(self, denoiser: str, step: Step) -> Row:
        """Open the row of a new forward."""
        row = Row(self.runs - 1, denoiser, step)
        self.rows.append(row)
        return row
