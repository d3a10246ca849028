"""A measured latency table: seconds of every unit group at several widths, and of the blocks around them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, Field, PositiveInt, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn

from hasten.eval.efficiency.timing import synchronize
from hasten.extend import CheckpointError, Structure, UnitGroup
from hasten.files import read_fields, seal, write_atomically
from hasten.plugins.aptp.cost import CostModel, open_gate
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import pruned

__all__ = ["LatencyTable", "Row", "measure_table"]

_FILE = "latency.json"
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_WIDTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pydantic_dataclass(frozen=True)
class Row:
    """Seconds of the module that holds a group, by the number of units it keeps (ascending)."""

    kept: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    seconds: tuple[_Seconds, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.kept) != len(self.seconds) or list(self.kept) != sorted(set(self.kept)):
            raise ValueError("kept has to ascend, with one time for each")
        return self

    def at(self, kept: Tensor) -> Tensor:
        """Seconds at numbers of units, of the shape of ``kept``: interpolated linearly between the measured ones."""
        x, y = torch.tensor(self.kept, dtype=torch.float), torch.tensor(self.seconds)
        if len(x) == 1:
            return y[0].expand_as(kept)
        upper = torch.bucketize(kept.detach(), x).clamp(1, len(x) - 1)
        slope = (y[upper] - y[upper - 1]) / (x[upper] - x[upper - 1])
        return y[upper - 1] + slope * (kept - x[upper - 1])


@dataclass(frozen=True)
class LatencyTable:
    """Time of the parts of a forward, at one size, batch and device.

    Args:
        structure: units of the denoiser.
        rest: seconds of everything that no plan can remove.
        blocks: block -> seconds in it, without the groups inside it.
        groups: group -> seconds by number of units.
        about: how it was measured.
    """

    structure: Structure
    rest: float
    blocks: Mapping[str, float]
    groups: Mapping[str, Row]
    about: Mapping[str, Any]

    def seconds(self, plan: PruningPlan) -> float:
        """Predicted time of a forward of a plan, in seconds."""
        units = {name: torch.tensor(float(len(kept))) for name, kept in plan.kept.items()}
        return float(self._total(units, dict.fromkeys(plan.dropped, torch.zeros(()))))

    def ratio(self, plan: PruningPlan) -> float:
        """Share of the whole model's time that a plan keeps."""
        return self.seconds(plan) / self.seconds(PruningPlan())

    def soft_ratio(self, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> Tensor:
        """Share of the time for K sets of gates; see :meth:`CostModel.soft_ratio`."""
        counts = {name: gates.sum(-1) for name, gates in units.items()}
        return self._total(counts, blocks) / self.seconds(PruningPlan())

    def _total(self, kept: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> Tensor:
        total = torch.tensor(self.rest)
        for name, own in self.blocks.items():
            total = total + open_gate(name, blocks) * own
        for name, row in self.groups.items():
            group = self.structure.groups[name]
            count = kept.get(name, torch.tensor(float(group.units)))
            total = total + open_gate(group.owner, blocks) * row.at(count)
        return total

    def save(self, folder: Path) -> None:
        """Write ``latency.json``."""
        rows = {name: asdict(row) for name, row in self.groups.items()}
        fields = {"about": self.about, "rest": self.rest, "blocks": self.blocks, "groups": rows}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _FILE, seal(fields))

    @classmethod
    def load(cls, folder: Path, structure: Structure) -> LatencyTable:
        """Read ``latency.json``.

        Raises:
            CheckpointError: there is none, it is damaged, or it was measured with other units.
        """
        file = folder / _FILE
        if not file.exists():
            raise CheckpointError(f"no latency table in {folder}; run `hasten aptp measure` first")
        remedy = "run `hasten aptp measure` again"
        fields = read_fields(file, _Fields, "the latency table", remedy, sealed=True)
        units = {name: group.units for name, group in structure.groups.items()}
        odd = [name for name, row in fields.groups.items() if units.get(name) != row.kept[-1]]
        if odd or set(fields.blocks) - set(structure.blocks):
            raise CheckpointError(
                f"{file} was measured with other units ({(odd or ['its blocks'])[0]}); measure again with the same "
                f"model and --ffn"
            )
        return cls(structure, fields.rest, fields.blocks, fields.groups, fields.about)


class _Fields(BaseModel):
    about: dict[str, Any]
    rest: _Seconds
    blocks: dict[str, _Seconds]
    groups: dict[str, Row]


@torch.no_grad()
def measure_table(denoiser: nn.Module, costs: CostModel, *, batch: int = 1, rounds: int = 9) -> LatencyTable:
    """Time every module that holds units, at five widths of all of them.

    Args:
        denoiser: the base.
        costs: its units, and the size of a forward.
        batch: samples in a forward.
        rounds: number of repetitions, in turns over the widths; their median counts.
    """
    structure = costs.structure
    free = [g for g in structure.groups.values() if g.refusal is None and g.units > g.step]
    inputs = costs.units.inputs(denoiser, costs.size, costs.text, batch)
    models = [
        pruned(denoiser, structure, PruningPlan({g.id: tuple(range(_count(g, width))) for g in free}))
        for width in _WIDTHS
    ]
    owners = {group.owner for group in free}
    timed = owners | {name for name, block in structure.blocks.items() if block.refusal is None}
    device = next(denoiser.parameters()).device
    runs: list[list[dict[str, float]]] = [[] for _ in models]
    for number in range(rounds + 1):
        for model, seen in zip(models, runs):
            with _stopwatches(model, timed, device) as spent:
                costs.units.forward(model, inputs)
            if number:  # the first turn warms up
                seen.append(spent)
    medians = [{name: statistics.median(spent[name] for spent in seen) for name in seen[0]} for seen in runs]
    groups = {}
    for group in free:
        points = {_count(group, width): medians[i][group.owner] for i, width in enumerate(_WIDTHS)}
        # A wider layer is never faster: what looks like it is noise, and would make budgets ambiguous.
        groups[group.id] = Row(tuple(points), tuple(accumulate(points.values(), max)))
    blocks = {name: medians[-1][name] for name in sorted(timed - owners)}
    size = [costs.size.height, costs.size.width]
    about = {"size": size, "text": costs.text, "batch": batch, "rounds": rounds, "device": str(device)}
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return LatencyTable(structure, medians[-1][""], blocks, groups, about)


@contextmanager
def _stopwatches(model: nn.Module, names: set[str], device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in each named module outside the named modules inside it; ``""`` is the rest of the model."""
    spent = dict.fromkeys(["", *sorted(names)], 0.0)
    stack: list[str] = []
    last = [0.0]

    def lap() -> None:
        synchronize(device)
        now = time.perf_counter()
        if stack:
            spent[stack[-1]] += now - last[0]
        last[0] = now

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            lap()
            stack.append(name)

        return hook

    def leave(*_: object) -> None:
        lap()
        stack.pop()

    with ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(enter(name)))
            hooks.enter_context(module.register_forward_hook(leave))
        enter("")()
        yield spent
        leave()


def _count(group: UnitGroup, width: float) -> int:
    return max(group.step, round(width * group.units / group.step) * group.step)
