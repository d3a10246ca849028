"""A pruning plan: which units of a denoiser stay, checked against its structure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from hasten.extend import Structure, UnitGroup, UnsupportedError, suggestion

__all__ = ["PlanFields", "PruningPlan"]


@dataclass(frozen=True)
class PruningPlan:
    """Units that stay, for every group that loses some, and blocks that go.

    Args:
        kept: group id -> unit numbers that stay, ascending. Groups that are not named stay whole.
        dropped: ids of blocks that are replaced by placeholders.
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def check(self, structure: Structure) -> None:
        """Refuse what the structure does not allow.

        Raises:
            UnsupportedError: naming the group or block, and why.
        """
        for name in sorted(self.dropped):
            block = structure.blocks.get(name)
            if block is None:
                raise UnsupportedError(
                    f"the plan drops {name!r}, which is not a block of this denoiser"
                    f"{suggestion(name, structure.blocks)}"
                )
            if block.refusal is not None:
                raise UnsupportedError(f"the plan drops {name!r}, which cannot be removed: {block.refusal}")
        for name, units in self.kept.items():
            group = structure.groups.get(name)
            if group is None:
                raise UnsupportedError(
                    f"the plan cuts {name!r}, which is not a unit group of this denoiser"
                    f"{suggestion(name, structure.groups)}"
                )
            if problem := _problem(group, units):
                raise UnsupportedError(f"the plan cannot cut {name!r}: {problem}")

    def units(self, group: UnitGroup) -> tuple[int, ...]:
        """Units of a group that stay (the group's block may still be dropped as a whole)."""
        return self.kept.get(group.id, tuple(range(group.units)))

    def without_whole(self, structure: Structure) -> PruningPlan:
        """This plan without groups that lose nothing, or that vanish with their block."""
        gone = {group.id for block in self.dropped for group in structure.inside(block)}
        kept = {
            name: tuple(units)
            for name, units in self.kept.items()
            if name not in gone and len(units) < structure.groups[name].units
        }
        return PruningPlan(kept, self.dropped)

    def first_units(self) -> PruningPlan:
        """The plan that keeps as many units of every group, the first ones."""
        return PruningPlan({n: tuple(range(len(units))) for n, units in self.kept.items()}, self.dropped)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "kept": {name: list(units) for name, units in sorted(self.kept.items())},
            "dropped": sorted(self.dropped),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


class PlanFields(BaseModel):
    """The JSON of :meth:`PruningPlan.to_dict`."""

    model_config = ConfigDict(extra="forbid")

    kept: dict[str, tuple[int, ...]]
    dropped: tuple[str, ...]

    def plan(self) -> PruningPlan:
        """The plan."""
        return PruningPlan(self.kept, frozenset(self.dropped))


def _problem(group: UnitGroup, units: tuple[int, ...]) -> str | None:
    if list(units) != sorted(set(units)):
        return f"unit numbers have to be different and ascending, not {list(units)}"
    if not units:
        return "at least one unit has to stay; drop its block instead"
    if units[0] < 0 or units[-1] >= group.units:
        return f"it has units 0 to {group.units - 1}, not {units[0] if units[0] < 0 else units[-1]}"
    if len(units) == group.units:
        return None
    if group.refusal is not None:
        return group.refusal
    if len(units) % group.step:
        return f"{len(units)} units are not a multiple of {group.step}, which its kernels require"
    return None
