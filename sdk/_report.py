"""The report of a call: one measured row per denoiser forward, and totals per resolution."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

__all__ = ["Report", "StepRecord", "Total"]


@dataclass(frozen=True)
class StepRecord:
    """One denoiser forward.

    Args:
        run: index of the pass through the loop, from 0 (routing and restarts have several).
        index: step number within that pass, from 0.
        level: flow-equivalent noise level in [0, 1].
        denoiser: attribute name of the denoiser.
        branch: ``"cond"``, ``"uncond"``, ``"both"``, ``"only"``, or ``"extra 1"`` and so on.
        size: latent extent of the solver's latents, ([frames,] height, width).
        resolution: latent extent the denoiser computed at; ``None`` if a technique answered without computing it.
        milliseconds: time of the forward, including the handlers of techniques.
        facts: values that each technique recorded.
    """

    run: int
    index: int
    level: float
    denoiser: str
    branch: str
    size: tuple[int, ...]
    resolution: tuple[int, ...] | None
    milliseconds: float
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """All forwards at one resolution: how many, their median and their sum in milliseconds."""

    resolution: tuple[int, ...] | None
    count: int
    median_milliseconds: float
    milliseconds: float


@dataclass(frozen=True)
class Report:
    """Report of one call of an accelerated pipeline.

    Args:
        pipeline: class name of the pipeline.
        techniques: names of the techniques that were active, outermost first.
        steps: every denoiser forward, in order; empty before the first call.
        seconds: wall-clock time of the whole call, text encoding and decoding included.
        timing: ``"cuda events"`` or ``"host clock"``.
        error: reason if the call failed, else ``None``.
        notes: remarks on the figures, such as that a technique had no effect.
    """

    pipeline: str
    techniques: tuple[str, ...]
    steps: tuple[StepRecord, ...] = ()
    seconds: float = 0.0
    timing: str = "host clock"
    error: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def totals(self) -> tuple[Total, ...]:
        """Totals per resolution the denoiser computed at, in order of first use."""
        groups: dict[tuple[int, ...] | None, list[float]] = {}
        for step in self.steps:
            groups.setdefault(step.resolution, []).append(step.milliseconds)
        return tuple(Total(size, len(ms), median(ms), sum(ms)) for size, ms in groups.items())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**asdict(self), "totals": [asdict(total) for total in self.totals]}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def __str__(self) -> str:
        from hasten._render import render_report

        return render_report(self)
