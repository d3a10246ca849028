"""The object a plugin contributes: a technique with a frozen configuration, claims, checks and attachment."""

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
"""How an output relates to the unaccelerated one of the same seed, as intended: the same up to rounding, an
approximation of it, or another sample of the same quality.
"""


Severity = Literal["error", "warning", "note"]
"""How much a finding weighs."""


class TechniqueConfig(StrictModel):
    """Base of every technique's configuration: immutable, JSON round-trips, unknown options refused.

    Neither text nor a truth value is taken for a number, whatever a field's type: ``"3"``, ``True`` and ``3.0`` are no
    ``int``, ``1`` is no ``bool``. An ``int`` is a ``float``, a list is a ``tuple``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=TechniqueConfig)


@dataclass(frozen=True)
class Finding:
    """What a check found. An ``error`` refuses the technique, a ``warning`` or ``note`` is shown in the plan."""

    severity: Severity
    message: str


@dataclass(frozen=True)
class StepForecast:
    """One step of a planned run.

    Args:
        index: step number from 0.
        level: flow-equivalent noise level in [0, 1].
        size: latent (height, width) the denoiser will see.
        flops: predicted floating-point operations of this step's forwards.
        note: what techniques do there, in a word or two (``"low"``); ``""`` for a step as it would be without them.
        forwards: how many times the solver evaluates the denoiser in this step.
    """

    index: int
    level: float
    size: tuple[int, int]
    flops: float
    note: str = ""
    forwards: int = 1

    def changed(self, share: float, note: str, size: tuple[int, int] | None = None) -> StepForecast:
        """This step with ``share`` of its operations, perhaps at another size; ``note`` joins those before it."""
        notes = ", ".join(part for part in (self.note, note) if part)
        return replace(self, flops=share * self.flops, note=notes, size=size or self.size)


@dataclass(frozen=True)
class Forecast:
    """What is predicted of the denoiser in one pipeline call, before anything runs.

    Args:
        steps: in order.
        baseline_flops: floating-point operations of the same call without any technique.
        facts: what else the plan shows of a technique.
    """

    steps: tuple[StepForecast, ...]
    baseline_flops: float
    facts: Mapping[str, Any] = field(default_factory=dict)


class Technique(ABC, Generic[ConfigT]):
    """One acceleration technique, configured.

    A class attribute ``name`` is what a user types; ``summary`` is one line for ``hasten plugins``; ``config_class``
    holds the options: a class, or a union of classes (``Fast | Exact``) that share a field of type ``Literal`` with one
    value each, so that every mode has its own options; ``requires``
    lists the adapter capabilities without which the pipeline is refused; ``sameness`` says what a comparison with
    the unaccelerated output of the same seed means; ``varies_by_prompt`` says that time and FLOPs depend on the prompt.
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
        """The slots this configuration touches on ``target``."""

    def check(self, target: Target) -> Iterable[Finding]:  # noqa: ARG002
        """Look at the pipeline without touching it. Findings of severity ``error`` refuse the technique."""
        return ()

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:  # noqa: ARG002
        """Look at one pipeline call with these bound arguments, which :meth:`check` has not refused.

        An ``error`` says that this call will fail, a ``warning`` that the technique will not do there what it is for.
        Both are shown in the plan; another call may be fine.
        """
        return ()

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:  # noqa: ARG002
        """What a reader of the report of a call should know of its denoiser forwards, a sentence each."""
        return ()

    def forecast(self, target: Target, arguments: Mapping[str, Any], before: Forecast) -> Forecast | None:  # noqa: ARG002
        """Predict steps, sizes and FLOPs of a pipeline call.

        Args:
            target: the pipeline.
            arguments: of the call, defaults filled in.
            before: what is predicted so far, at first of the call without any technique. Those that change steps or
                sizes are asked first, so that each is priced at the sizes it will see.

        Returns:
            ``before`` with this technique; ``None`` where nothing can be predicted, which the plan says.
        """
        return None

    @abstractmethod
    def attach(self, target: Target, seams: Seams) -> None:
        """Register handlers on the seams (or structural edits in ``seams.journal``). Raising undoes all of it."""
