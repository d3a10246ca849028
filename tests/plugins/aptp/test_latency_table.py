"""The latency table: what it measures, what it predicts, and budgets on it."""

import json
from dataclasses import replace

import pytest
import torch

from hasten._adapters.units import Grain
from hasten._errors import CheckpointError, ConfigError
from hasten.plugins.aptp import latency_table
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.latency_table import LatencyTable, Row, _stopwatches, measure_table
from hasten.plugins.aptp.make.gate_layout import GateLayout
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import pruned

from .conftest import make_subject
from .test_surgery import some


def invented(structure):
    """A table of round figures: 2 ms a unit, 5 ms a block, 10 ms for the rest."""
    groups = {
        name: Row((group.step, group.units), (0.002 * group.step, 0.002 * group.units))
        for name, group in structure.groups.items()
        if group.units > group.step
    }
    owners = {structure.groups[name].owner for name in groups}
    blocks = {n: 0.005 for n, b in structure.blocks.items() if b.refusal is None and n not in owners}
    return LatencyTable(structure, 0.01, blocks, groups, {"device": "cpu"})


def test_predictions_add_up(subject):
    structure, table = subject.structure, invented(subject.structure)
    plan = some(structure, 1).without_whole(structure)
    gone = lambda name: any(f"{name}.".startswith(f"{block}.") for block in plan.dropped)  # noqa: E731
    expected = 0.01 + sum(0.005 for block in table.blocks if not gone(block))
    for name in table.groups:
        group = structure.groups[name]
        expected += 0 if gone(group.owner) else 0.002 * len(plan.units(group))
    assert table.seconds(plan) == pytest.approx(expected, rel=1e-5)
    assert table.ratio(PruningPlan()) == 1


def test_soft_times_equal_those_of_plans_and_have_a_slope(subject):
    space = GateLayout(subject.structure, invented(subject.structure))
    plans = [space.plan(torch.randn(space.size), budget) for budget in (0.7, 0.85, 1.0)]
    gates = torch.stack([space.of(plan) for plan in plans]).requires_grad_()
    soft = space.budget.soft_ratio(*space.split(gates))
    assert torch.allclose(soft, torch.tensor([space.budget.ratio(plan) for plan in plans]), atol=1e-5)
    soft.sum().backward()
    assert bool((gates.grad[2] > 0).all())


def test_budgets_on_time_are_met_and_impossible_ones_refused(subject):
    space = GateLayout(subject.structure, invented(subject.structure))
    scores = torch.randn(space.size, generator=torch.Generator().manual_seed(1))
    for budget in (0.8, 0.95):
        assert budget - 0.1 < space.budget.ratio(space.plan(scores, budget)) <= budget
    with pytest.raises(ConfigError, match="no plan reaches"):
        space.plan(scores, 1e-3)


def test_between_measured_widths_time_is_linear():
    row = Row((1, 3, 5), (1.0, 2.0, 6.0))
    assert row.at(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist() == [1.0, 1.5, 2.0, 4.0, 6.0]
    assert Row((2,), (3.0,)).at(torch.tensor([2.0])).tolist() == [3.0]


def test_every_module_gets_the_time_spent_in_it_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(latency_table.time, "perf_counter", lambda: now[0])

    class Slow(torch.nn.Module):
        def __init__(self, pause, inner=None):
            super().__init__()
            self.pause, self.inner = pause, inner

        def forward(self, x):
            now[0] += self.pause
            return x if self.inner is None else self.inner(x)

    model = torch.nn.Sequential(Slow(2, Slow(4)), Slow(1))
    with _stopwatches(model, {"0", "0.inner"}, torch.device("cpu")) as spent:
        model(torch.zeros(1))
    assert spent == {"": 1, "0": 2, "0.inner": 4}


@pytest.mark.parametrize("name", ["sd15", "flux", "var-text"])
def test_a_table_is_measured_kept_and_bound_to_its_units(name, tmp_path):
    subject = make_subject(name)
    costs = CostModel(subject.denoiser, subject.units, subject.structure, subject.size, 7)
    table = measure_table(subject.denoiser, costs, batch=2, rounds=3)
    for name, row in table.groups.items():
        assert row.kept[-1] == subject.structure.groups[name].units
        assert list(row.seconds) == sorted(row.seconds)
        assert row.seconds[0] > 0
    whole = table.seconds(PruningPlan())
    least = PruningPlan({name: tuple(range(row.kept[0])) for name, row in table.groups.items()})
    assert 0 < table.seconds(least) <= whole
    pruned(subject.denoiser, subject.structure, least)  # a legal plan
    table.save(tmp_path)
    again = LatencyTable.load(tmp_path, subject.structure)
    assert again == replace(table, about=json.loads(json.dumps(table.about)))
    coarse = subject.units.structure(subject.denoiser, Grain(ffn=4096, align=1))
    with pytest.raises(CheckpointError, match="other units"):
        LatencyTable.load(tmp_path, coarse)


def test_a_missing_table_is_answered_with_the_command(tmp_path):
    with pytest.raises(CheckpointError, match="hasten aptp measure"):
        LatencyTable.load(tmp_path, make_subject("sd15").structure)
