"""What a whole pipeline call will cost with all techniques together: each priced at the steps and sizes it will see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hasten._claims import Access
from hasten._clock import expected_batch
from hasten._cost import plain_forecast
from hasten._decoding import Part, parts_of
from hasten._timings import Timings, timings_of

if TYPE_CHECKING:
    from hasten._claims import Claim
    from hasten._enabled import Enabled
    from hasten._target import Target
    from hasten._technique import Forecast, StepForecast

__all__ = ["WORTH", "Estimate", "Seconds", "estimate", "forecasts"]

WORTH = 1.1
"""Below this ratio techniques are not worth their cost in quality."""
_SAME = 0.999


@dataclass(frozen=True)
class Seconds:
    """Times of one call, from milliseconds per forward that were measured on this machine.

    Args:
        plain: of the call without techniques.
        accelerated: of the call with them.
        steps: of each step with them.
        outside: their common part outside of the denoiser.
        source: where and when that was measured.
    """

    plain: float
    accelerated: float
    steps: tuple[float, ...]
    outside: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """One pipeline call, all techniques together.

    Args:
        steps: of the denoiser with the techniques.
        plain: of the denoiser without them.
        parts: what is computed outside of the denoiser, with and without them.
        unpriced: techniques that predict nothing, and are not in the figures.
        seconds: the same in seconds, ``None`` where something has not been measured.
        unmeasured: what that is.
    """

    steps: tuple[StepForecast, ...]
    plain: tuple[StepForecast, ...]
    parts: tuple[Part, ...]
    unpriced: tuple[str, ...]
    seconds: Seconds | None
    unmeasured: str

    @property
    def outside_flops(self) -> float:
        """Operations outside of the denoiser, as far as they could be counted."""
        return sum(part.flops or 0.0 for part in self.parts)

    @property
    def plain_flops(self) -> float:
        """Operations of the whole call without techniques."""
        return _total(self.plain) + self.outside_flops

    @property
    def flops(self) -> float:
        """Operations of the whole call with techniques."""
        return _total(self.steps) + self.outside_flops

    @property
    def flops_ratio(self) -> float:
        """Operations without techniques over those with them, decoder and text encoders included."""
        return self.plain_flops / self.flops if self.flops else 1.0

    @property
    def speedup(self) -> float | None:
        """Seconds without techniques over seconds with them, ``None`` where they are not known."""
        return None if self.seconds is None else self.seconds.plain / self.seconds.accelerated

    @property
    def worth(self) -> bool:
        """Whether the gain is at least :data:`WORTH`: in seconds where they are known, else in operations."""
        gain = self.speedup or self.flops_ratio
        return round(gain, 2) >= WORTH

    @property
    def remaining(self) -> tuple[StepForecast, ...]:
        """Steps that cost as much as without techniques."""
        dearest = max((step.flops / step.forwards for step in self.plain), default=0.0)
        scaled = len(self.plain) == len(self.steps)
        usual = [
            step.flops if scaled else dearest * own.forwards for step, own in zip(self.plain, self.steps)
        ]
        usual += [dearest * step.forwards for step in self.steps[len(usual) :]]
        return tuple(step for step, full in zip(self.steps, usual) if step.flops >= _SAME * full)

    @property
    def bound(self) -> float | None:
        """The ratio if all other steps cost nothing; ``None`` without techniques or with nothing that remains."""
        left = _total(self.remaining) + self.outside_flops
        changed = len(self.remaining) < len(self.steps)
        return self.plain_flops / left if changed and left else None

    def to_dict(self) -> dict[str, Any]:
        """The estimate as plain JSON values."""
        return {
            **asdict(self),
            "plain_flops": self.plain_flops,
            "flops": self.flops,
            "flops_ratio": self.flops_ratio,
            "speedup": self.speedup,
            "bound": self.bound,
            "remaining_steps": [step.index for step in self.remaining],
            "worth": self.worth,
        }


def forecasts(
    target: Target,
    techniques: Sequence[tuple[Enabled, Sequence[Claim]]],
    arguments: Mapping[str, Any],
) -> tuple[Forecast | None, dict[str, Forecast | None]]:
    """The denoiser's steps without techniques, and with each technique after those that are priced before it.

    Args:
        target: the pipeline.
        techniques: with their claims, in the order they are listed.
        arguments: of the call.

    Returns:
        ``None`` for both where the steps of the call are not known ahead.
    """
    plain = plain_forecast(target, arguments)
    if plain is None:
        return None, {technique.name: None for technique, _ in techniques}
    found: dict[str, Forecast | None] = {}
    latest = plain
    for technique, _ in sorted(techniques, key=lambda item: _turn(item[1])):
        forecast = technique.forecast(target, arguments, latest)
        found[technique.name] = forecast
        latest = forecast or latest
    return plain, found


def estimate(
    target: Target,
    arguments: Mapping[str, Any],
    plain: Forecast | None,
    found: Mapping[str, Forecast | None],
) -> Estimate | None:
    """What :func:`forecasts` comes to for the whole call; ``None`` where the steps are not known ahead."""
    if plain is None:
        return None
    priced = [forecast for forecast in found.values() if forecast is not None]
    steps = priced[-1].steps if priced else plain.steps
    unpriced = tuple(name for name, forecast in found.items() if forecast is None)
    seconds, unmeasured = _seconds(timings_of(target), plain.steps, steps, expected_batch(arguments) or 1)
    return Estimate(steps, plain.steps, parts_of(target, arguments), unpriced, seconds, unmeasured)


def _turn(claims: Sequence[Claim]) -> int:
    """Who changes the steps is priced first, then who changes sizes."""
    written = {claim.slot for claim in claims if claim.access is not Access.READS}
    return 0 if "steps.schedule" in written else 1 if "tokens.shape" in written else 2


def _seconds(
    timings: Timings, plain: Sequence[StepForecast], steps: Sequence[StepForecast], pictures: int
) -> tuple[Seconds | None, str]:
    """Seconds of both, or what has not been measured."""
    every = dict.fromkeys(timings.key(step) for step in (*plain, *steps))
    missing = [key for key in every if key not in timings.forwards]
    outside = timings.outside.get(timings.outside_key(plain, pictures))
    if missing:
        return None, f"forwards {', '.join(map(timings.describe, missing))}"
    if outside is None:
        return None, "encoding and decoding"
    before, after = (
        tuple(step.forwards * timings.forwards[timings.key(step)] / 1e3 for step in of)
        for of in (plain, steps)
    )
    return Seconds(sum(before) + outside, sum(after) + outside, after, outside, timings.source), ""


def _total(steps: Sequence[StepForecast]) -> float:
    return sum(step.flops for step in steps)
