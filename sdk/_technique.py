"""Base classes of techniques: configuration, claims, checks, forecasts and attachment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import ConfigDict

from hasten._strict import StrictModel

if TYPE_CHECKING:
    from hasten._claims import Claim
    from hasten._report import StepRecord
    from hasten._seams import Seams
    from hasten._target import Target


Sameness = Literal["exact", "close", "distributional"]
"""Intended similarity to the stock output of the same seed: equal up to rounding, an approximation, or another
sample of the same quality.
"""


Severity = Literal["error", "warning", "note"]
"""Severity of a finding."""


class TechniqueConfig(StrictModel):
    """Base of technique configurations: immutable, serialisable to JSON, unknown options refused.

    Validation is strict: ``"3"``, ``True`` and ``3.0`` are not accepted as ``int``, and ``1`` not as ``bool``. An
    ``int`` is accepted as ``float``, and a list as ``tuple``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=TechniqueConfig)


@dataclass(frozen=True)
class Finding:
    """Result of a check. An ``error`` refuses the technique; a ``warning`` or ``note`` is shown in the plan."""

    severity: Severity
    message: str


@dataclass(frozen=True)
class StepForecast:
    """One step of a planned run.

    Args:
        index: step number from 0.
        level: flow-equivalent noise level in [0, 1].
        size: latent (height, width) of the denoiser's input.
        flops: predicted floating-point operations of this step's forwards.
        note: short description of what techniques do in this step (``"low"``); ``""`` for an unchanged step.
        forwards: number of denoiser evaluations of the solver in this step.
    """

    index: int
    level: float
    size: tuple[int, int]
    flops: float
    note: str = ""
    forwards: int = 1

    def changed(self, share: float, note: str, size: tuple[int, int] | None = None) -> StepForecast:
        """This step with ``share`` of its operations, optionally at another size; ``note`` is appended."""
        notes = ", ".join(part for part in (self.note, note) if part)
        return replace(self, flops=share * self.flops, note=notes, size=size or self.size)


@dataclass(frozen=True)
class Forecast:
    """Predicted denoiser steps of one pipeline call.

    Args:
        steps: in order.
        baseline_flops: floating-point operations of the same call without any technique.
        facts: further values that the plan shows for a technique.
    """

    steps: tuple[StepForecast, ...]
    baseline_flops: float
    facts: Mapping[str, Any] = field(default_factory=dict)


class Technique(ABC, Generic[ConfigT]):
    """Base class of techniques; an instance is one configured technique.

    Class attributes: ``name`` is used in configurations, and ``summary`` is one line for ``hasten plugins``.
    ``config_class`` holds the options: a class, or a union of classes (``Fast | Exact``) that share a field of type
    ``Literal`` with one value each, so that every mode has its own options. ``requires`` lists the adapter capabilities
    that a pipeline needs. ``sameness`` is the intended similarity to the stock output of the same seed.
    ``varies_by_prompt`` is true if time and FLOPs depend on the prompt.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    config_class: ClassVar[type[TechniqueConfig] | UnionType]
    requires: ClassVar[tuple[type, ...]] = ()
    sameness: ClassVar[Sameness] = "distributional"
    varies_by_prompt: ClassVar[bool] = False

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def claims(self, target: Target) -> Sequence[Claim]:
        """The slots that this configuration uses on ``target``."""

    def check(self, target: Target) -> Iterable[Finding]:  # noqa: ARG002
        """Check the pipeline without changing it. Findings of severity ``error`` refuse the technique."""
        return ()

    def ranks_per_call(self, world: int) -> int:  # noqa: ARG002
        """How many of ``world`` processes compute one call together; the others compute calls of their own."""
        return 1

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:  # noqa: ARG002
        """Check one pipeline call with these bound arguments, after :meth:`check` has accepted the pipeline.

        An ``error`` means that this call will fail, a ``warning`` that the technique will have no effect in it.
        Both are shown in the plan and apply to this call only.
        """
        return ()

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:  # noqa: ARG002
        """Notes for the report of a call about its denoiser forwards, one sentence each."""
        return ()

    def forecast(self, target: Target, arguments: Mapping[str, Any], before: Forecast) -> Forecast | None:  # noqa: ARG002
        """Predict steps, sizes and FLOPs of a pipeline call.

        Args:
            target: the pipeline.
            arguments: of the call, defaults filled in.
            before: forecast so far, starting with the call without techniques. Techniques that change steps or
                sizes come first, so that the cost of the others is computed at the right sizes.

        Returns:
            ``before`` with this technique; ``None`` if there is no forecast, which the plan reports.
        """
        return None

    @abstractmethod
    def attach(self, target: Target, seams: Seams) -> None:
        """Register handlers on the seams, or structural edits in ``seams.journal``. An exception undoes all of them."""
