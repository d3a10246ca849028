"""How long pictures take here: measured batch by batch, and predicted from the time of a plain step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from hasten.eval.compare.store import RunStore
from hasten.eval.tune.setting import Setting

__all__ = ["Pace", "seconds_each", "usual"]


def seconds_each(store: RunStore, arm: str) -> tuple[float, ...]:
    """Seconds a picture of every batch of an arm, in order."""
    batches: dict[int, list[float]] = {}
    for (name, _), record in store.records(verify=False).items():
        if name == arm:
            batches.setdefault(record.batch, []).append(record.batch_seconds)
    return tuple(seconds[0] / len(seconds) for _, seconds in sorted(batches.items()))


def usual(each: Sequence[float]) -> float:
    """The median; the first batch, which may compile, counts only alone."""
    return median(each[1:] or each)


@dataclass(frozen=True)
class Pace:
    """How long plain sampling takes here.

    Args:
        fixed: seconds a picture outside of the denoiser.
        step: seconds of one full denoising step of a picture.
        measured: names of enabled techniques -> measured over predicted seconds of settings that were run.
    """

    fixed: float
    step: float
    measured: Mapping[tuple[str, ...], tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, slow: tuple[int, float], fast: tuple[int, float]) -> Pace:
        """From two runs of plain sampling, each of so many steps in so many seconds a picture."""
        step = (slow[1] - fast[1]) / (slow[0] - fast[0]) if slow[0] > fast[0] else slow[1] / slow[0]
        step = min(max(step, 0.0), slow[1] / slow[0])
        return cls(slow[1] - step * slow[0], step)

    def seconds(self, setting: Setting, share: float) -> float:
        """Predicted seconds a picture.

        Args:
            setting: what is to be run.
            share: of the plain steps' FLOPs that its steps take.
        """
        known = self.measured.get(tuple(setting.techniques), ())
        return (self.fixed + self.step * setting.steps * share) * (median(known) if known else 1.0)

    def learned(self, setting: Setting, share: float, seconds: float) -> Pace:
        """With what running ``setting`` has shown."""
        key = tuple(setting.techniques)
        plain = self.fixed + self.step * setting.steps * share
        known = {**self.measured, key: (*self.measured.get(key, ()), seconds / plain)}
        return Pace(self.fixed, self.step, known)
