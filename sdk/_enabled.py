"""A technique as the host uses it: made from its options and asked, one method at a time, with every answer checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten._answers import checked_claims, checked_findings, checked_forecast, checked_notes
from hasten._plugins import host
from hasten._technique import Technique

if TYPE_CHECKING:
    from hasten._claims import Claim
    from hasten._report import StepRecord
    from hasten._seams import Seams
    from hasten._target import Target
    from hasten._technique import Finding, Forecast, TechniqueConfig

__all__ = ["Enabled"]


class Enabled:
    """One enabled technique.

    Args:
        name: of the technique, as registered.
        options: its validated options.

    Raises:
        ConfigError: no technique has that name.
        PluginError: the technique cannot be made. Every method raises it, for what the technique raises or returns.
    """

    def __init__(self, name: str, options: TechniqueConfig) -> None:
        self.name = name
        self.culprit = host().culprit("technique", name)
        cls = host().technique(name)
        with self.culprit.during("__init__"):
            technique = cls(options)
        if not isinstance(technique, Technique):
            raise self.culprit.returned(technique, "__new__", f"an instance of {cls.__qualname__}")
        if not isinstance(getattr(technique, "config", None), cls.config_class) or technique.name != name:
            raise self.culprit.broke("has no config or no name: call super().__init__(config) in __init__")
        self._technique = technique
        self.options: dict[str, Any] = technique.config.model_dump(mode="json")
        self.requires = cls.requires

    def claims(self, target: Target) -> tuple[Claim, ...]:
        """What it touches on the pipeline."""
        with self.culprit.during("claims"):
            return checked_claims(self._technique.claims(target), self.culprit)

    def ranks_per_call(self, world: int) -> int:
        """How many of ``world`` processes compute one call together."""
        with self.culprit.during("ranks_per_call"):
            count = self._technique.ranks_per_call(world)
        if type(count) is not int or not 1 <= count <= max(world, 1):
            raise self.culprit.returned(count, "ranks_per_call", f"a number of processes from 1 to {world}")
        return count

    def check(self, target: Target) -> tuple[Finding, ...]:
        """What it finds on the pipeline."""
        with self.culprit.during("check"):
            return checked_findings(self._technique.check(target), self.culprit, "check")

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> tuple[Finding, ...]:
        """What it finds about one pipeline call."""
        with self.culprit.during("check_call"):
            return checked_findings(self._technique.check_call(target, arguments), self.culprit, "check_call")

    def review(self, steps: Sequence[StepRecord]) -> tuple[str, ...]:
        """What it says of the forwards of a call."""
        with self.culprit.during("review"):
            return checked_notes(self._technique.review(steps), self.culprit, "review")

    def forecast(self, target: Target, arguments: Mapping[str, Any], before: Forecast) -> Forecast | None:
        """What it makes of the forecast ``before`` of a pipeline call."""
        with self.culprit.during("forecast"):
            return checked_forecast(self._technique.forecast(target, arguments, before), self.culprit)

    def attach(self, target: Target, seams: Seams) -> None:
        """Let it put its handlers on the seams."""
        with self.culprit.during("attach"):
            answer = self._technique.attach(target, seams)
        if answer is not None:
            raise self.culprit.returned(answer, "attach", "nothing: register handlers on `seams`")
