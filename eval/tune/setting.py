"""One setting of a pipeline: steps, solver and techniques with their options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hasten.commands import Config
from hasten.eval.compare.engine import Arm

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """What is tried.

    Args:
        steps: denoising steps.
        solver: of :func:`hasten.commands.other_solvers`; ``None`` for the pipeline's own.
        techniques: name -> options, outermost first; those that are not named have their defaults.
    """

    steps: int
    solver: str | None = None
    techniques: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it is sampling without any technique."""
        return not self.techniques

    @property
    def config(self) -> Config | None:
        """The techniques; ``None`` for plain sampling.

        Raises:
            ConfigError: if options contradict each other.
        """
        return None if self.plain else Config.of({"techniques": self.to_dict()["techniques"]})

    @property
    def arm(self) -> Arm:
        """As a row of a run, named after what it is, so that it is never made twice."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        name = f"{self.steps}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        return Arm(
            name, "control" if self.plain else "candidate", self.steps, self.config, solver=self.solver
        )

    def describe(self) -> str:
        """``8 steps, UniPC, bottleneck (delta 0.2)``."""
        parts = [f"{self.steps} steps", *([self.solver] if self.solver else [])]
        for name, options in self.techniques.items():
            shown = ", ".join(f"{option} {_shown(value)}" for option, value in options.items())
            parts.append(f"{name} ({shown})" if shown else name)
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, in the form of a configuration file."""
        techniques = [{"name": name, **options} for name, options in self.techniques.items()]
        return {"steps": self.steps, "solver": self.solver, "techniques": json.loads(json.dumps(techniques))}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Setting:
        """The inverse of :meth:`to_dict`."""
        techniques = {
            entry["name"]: {key: value for key, value in entry.items() if key != "name"}
            for entry in fields["techniques"]
        }
        return cls(fields["steps"], fields["solver"], techniques)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
