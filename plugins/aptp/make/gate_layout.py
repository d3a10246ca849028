"""The gates of a structure as one vector, and the plan that a vector of scores gives at a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hasten.extend import ConfigError, Structure
from hasten.plugins.aptp.cost import Budget
from hasten.plugins.aptp.plan import PruningPlan

__all__ = ["GateLayout"]


@dataclass(frozen=True)
class GateLayout:
    """Order of the gates in a vector: the units of every group, then the blocks.

    Args:
        structure: units of the denoiser.
        budget: cost of plans.
    """

    structure: Structure
    budget: Budget

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups that may lose units."""
        return tuple(n for n, g in self.structure.groups.items() if g.refusal is None and g.units > g.step)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that may be removed."""
        return tuple(name for name, block in self.structure.blocks.items() if block.refusal is None)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of gates of each group."""
        return tuple(self.structure.groups[name].units for name in self.groups)

    @property
    def size(self) -> int:
        """Number of gates."""
        return sum(self.widths) + len(self.blocks)

    def split(self, gates: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gates (..., size) by group (..., units), and by block (...)."""
        parts = gates.split([*self.widths, len(self.blocks)], -1)
        units = dict(zip(self.groups, parts))
        return units, {name: parts[-1][..., i] for i, name in enumerate(self.blocks)}

    def prices(self) -> Tensor:
        """Share of the cost that each gate saves if it alone is closed (size,)."""
        prices = []
        for name in self.groups:
            group = self.structure.groups[name]
            fewer = PruningPlan({name: tuple(range(group.units - group.step))})
            prices += [(1 - self.budget.ratio(fewer)) / group.step] * group.units
        prices += [1 - self.budget.ratio(PruningPlan({}, frozenset({name}))) for name in self.blocks]
        return torch.tensor(prices)

    def plan(self, scores: Tensor, budget: float) -> PruningPlan:
        """The plan that keeps the highest scores at a cost of at most ``budget``.

        Args:
            scores: of the gates (size,); lower ones are removed first.
            budget: share of the whole model's cost, in (0, 1].

        Raises:
            ConfigError: no plan is that cheap.
        """
        order = sorted(scores.tolist())
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.budget.ratio(self._above(scores, order[middle])) <= budget:
                high = middle
            else:
                low = middle + 1
        if low == len(order):
            least = self.budget.ratio(self._above(scores, float("inf")))
            if least > budget:
                raise ConfigError(
                    f"no plan reaches a budget of {budget:.1%}: with one unit per group and every removable "
                    f"block removed, the model still costs {least:.1%}; choose a higher budget"
                )
            return self._filled(self._above(scores, float("inf")), scores, budget)
        return self._filled(self._above(scores, order[low]), scores, budget)

    def _filled(self, plan: PruningPlan, scores: Tensor, budget: float) -> PruningPlan:
        """The plan with the best removed units added that still fit: a single block may have freed more than needed."""
        units, blocks = self.split(scores)
        for name in sorted(plan.dropped, key=lambda block: (-float(blocks[block]), block)):
            inside = {group.id for group in self.structure.inside(name)}
            least = {g: kept[: self.structure.groups[g].step] for g, kept in plan.kept.items() if g in inside}
            for widths in (plan.kept, {**plan.kept, **least}):
                larger = PruningPlan(widths, plan.dropped - {name})
                if self.budget.ratio(larger) <= budget:
                    plan = larger
                    break
        spare = []
        for name, kept in plan.kept.items():
            step = self.structure.groups[name].step
            gone = [
                u for u in torch.argsort(units[name], descending=True, stable=True).tolist() if u not in kept
            ]
            packs = [tuple(gone[i : i + step]) for i in range(0, len(gone), step)]
            spare += [(float(units[name][list(pack)].mean()), name, pack) for pack in packs]
        for _, name, pack in sorted(spare, key=lambda item: (-item[0], item[1])):
            larger = PruningPlan({**plan.kept, name: tuple(sorted((*plan.kept[name], *pack)))}, plan.dropped)
            if self.budget.ratio(larger) <= budget:
                plan = larger
        return plan.without_whole(self.structure)

    def _above(self, scores: Tensor, bound: float) -> PruningPlan:
        """The plan that keeps scores of at least ``bound``, and the least number of units of every group."""
        units, blocks = self.split(scores)
        kept = {}
        for name, values in units.items():
            step = self.structure.groups[name].step
            wanted = int((values >= bound).sum())
            number = min(len(values), max(step, -(-wanted // step) * step))
            best = torch.argsort(values, descending=True, stable=True)[:number]
            kept[name] = tuple(sorted(best.tolist()))
        dropped = frozenset(name for name, value in blocks.items() if float(value) < bound)
        return PruningPlan(kept, dropped)

    def of(self, plan: PruningPlan) -> Tensor:
        """The gates of a plan (size,), 0 or 1."""
        parts: list[Sequence[float]] = []
        for name in self.groups:
            units = set(plan.units(self.structure.groups[name]))
            parts.append([float(unit in units) for unit in range(self.structure.groups[name].units)])
        parts.append([float(name not in plan.dropped) for name in self.blocks])
        return torch.tensor([value for part in parts for value in part])
