"""Masking and cutting are one function, on every family and for any legal plan."""

import random

import pytest
import torch

from hasten._adapters.units import Grain
from hasten._errors import UnsupportedError
from hasten.extend import clone_tree
from hasten.plugins.aptp.gates import gated
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import nested_order, pruned, reordered, skeleton


def some(structure, seed, *, one=False, drop=0.3):
    """A random legal plan; with ``one``, a single unit of everything."""
    rng = random.Random(seed)
    kept = {}
    for name, group in structure.groups.items():
        if group.refusal is None:
            number = group.step if one else rng.randrange(group.step, group.units + 1, group.step)
            kept[name] = tuple(sorted(rng.sample(range(group.units), number)))
    legal = [name for name, block in structure.blocks.items() if block.refusal is None]
    return PruningPlan(kept, frozenset(name for name in legal if rng.random() < drop))


def masks(structure, plan):
    """Gates of 0 and 1 for a plan, by group (units,) and by block ()."""
    units = {name: torch.zeros(structure.groups[name].units) for name in plan.kept}
    for name, kept in plan.kept.items():
        units[name][list(kept)] = 1
    return units, {name: torch.zeros(()) for name in plan.dropped}


@pytest.mark.parametrize("case", ["random 1", "random 2", "one unit", "only blocks", "no block"])
def test_masking_and_surgery_agree(subject, case):
    structure = subject.structure
    if case == "only blocks" and not structure.blocks:
        pytest.skip("its blocks stay")
    plan = {
        "random 1": lambda: some(structure, 1),
        "random 2": lambda: some(structure, 2),
        "one unit": lambda: some(structure, 3, one=True, drop=0),
        "only blocks": lambda: PruningPlan({}, some(structure, 4, drop=1).dropped),
        "no block": lambda: some(structure, 5, drop=0),
    }[case]()
    inputs = subject.inputs()
    whole = subject.run(subject.denoiser, inputs)
    with gated(subject.denoiser, structure, *masks(structure, plan)):
        masked = subject.run(subject.denoiser, inputs)
    cut = pruned(subject.denoiser, structure, plan)
    assert (subject.run(cut, inputs) - masked).abs().max() < 1e-5
    assert (masked - whole).abs().max() > 1e-4
    assert torch.equal(subject.run(subject.denoiser, inputs), whole)


def test_keeping_everything_is_the_same_bits_and_the_same_tensors(subject):
    plan = PruningPlan({name: tuple(range(g.units)) for name, g in subject.structure.groups.items()})
    cut, inputs = pruned(subject.denoiser, subject.structure, plan), subject.inputs()
    assert torch.equal(subject.run(cut, inputs), subject.run(subject.denoiser, inputs))
    pairs = zip(cut.parameters(), subject.denoiser.parameters(), strict=True)
    assert all(a is b for a, b in pairs)


def test_every_legal_block_can_go_alone_and_illegal_ones_are_refused_with_a_reason(subject):
    inputs = subject.inputs(1)
    for name, block in subject.structure.blocks.items():
        plan = PruningPlan({}, frozenset({name}))
        if block.refusal is None:
            out = subject.run(pruned(subject.denoiser, subject.structure, plan), inputs)
            assert bool(out.isfinite().all()), name
        else:
            with pytest.raises(UnsupportedError, match=block.refusal.split()[0]):
                pruned(subject.denoiser, subject.structure, plan)


def test_the_pruned_state_dict_loads_into_its_skeleton(subject):
    plan = some(subject.structure, 6)
    cut = pruned(subject.denoiser, subject.structure, plan)
    empty = skeleton(subject.denoiser, subject.structure, plan)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(cut.state_dict(), strict=True, assign=True)
    inputs = subject.inputs()
    assert torch.equal(subject.run(empty, inputs), subject.run(cut, inputs))


def test_the_first_units_share_memory_with_the_base(subject):
    plan = PruningPlan(
        {name: tuple(range(g.step)) for name, g in subject.structure.groups.items() if g.refusal is None}
    )
    cut = pruned(subject.denoiser, subject.structure, plan)
    base = {p.untyped_storage().data_ptr() for p in subject.denoiser.parameters()}
    matrices = [p for p in cut.parameters() if p.ndim == 2]
    shared = [p for p in matrices if p.untyped_storage().data_ptr() in base]
    assert len(shared) > 0.7 * len(matrices)


def test_another_order_of_the_units_is_the_same_function(subject):
    structure, rng = subject.structure, random.Random(7)
    cuttable = [g for g in structure.groups.values() if g.refusal is None]
    order = {group.id: tuple(rng.sample(range(group.units), group.units)) for group in cuttable}
    inputs = subject.inputs()
    same = subject.run(reordered(subject.denoiser, structure, order), inputs)
    assert torch.allclose(same, subject.run(subject.denoiser, inputs), atol=1e-5)
    large = {g.id: order[g.id][: max(g.step, g.units // g.step // 2 * g.step)] for g in cuttable}
    small = {name: units[: structure.groups[name].step] for name, units in large.items()}
    plans = [PruningPlan({n: tuple(sorted(u)) for n, u in kept.items()}) for kept in (small, large)]
    found = nested_order(structure, plans)
    source = reordered(subject.denoiser, structure, found)
    for plan in plans:
        cut = pruned(source, structure, plan.first_units())
        expected = subject.run(pruned(subject.denoiser, structure, plan), inputs)
        assert torch.allclose(subject.run(cut, inputs), expected, atol=1e-5)
    other = PruningPlan({cuttable[0].id: (cuttable[0].units - 1,)})
    assert nested_order(structure, [PruningPlan({cuttable[0].id: (0,)}), other]) is None


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ((), "at least one unit"),
        ((1, 0), "ascending"),
        ((0, 0), "different"),
        ((0, 99), "not 99"),
        ((-1,), "not -1"),
    ],
)
def test_malformed_plans_are_refused(subject, kept, reason):
    name = next(iter(subject.structure.groups))
    with pytest.raises(UnsupportedError, match=reason):
        pruned(subject.denoiser, subject.structure, PruningPlan({name: kept}))


def test_unknown_names_are_answered_with_the_nearest(subject):
    name = next(iter(subject.structure.groups))
    with pytest.raises(UnsupportedError, match="did you mean"):
        PruningPlan({name + "x": (0,)}).check(subject.structure)
    with pytest.raises(UnsupportedError, match="not a block"):
        PruningPlan({}, frozenset({"nothing"})).check(subject.structure)


def test_widths_keep_the_step_that_kernels_want(subject):
    if not any(group.kind == "resnet" for group in subject.structure.groups.values()):
        pytest.skip("no resnets")
    coarse = subject.units.structure(subject.denoiser, Grain(align=4))
    group = next(g for g in coarse.groups.values() if g.kind == "resnet" and g.step == 2)
    with pytest.raises(UnsupportedError, match="multiple of 2"):
        PruningPlan({group.id: (0,)}).check(coarse)


def test_a_clone_is_another_tree_over_the_same_tensors(subject):
    twin = clone_tree(subject.denoiser)
    names = [name for name, _ in subject.denoiser.named_modules()]
    assert [name for name, _ in twin.named_modules()] == names
    assert not {id(m) for m in twin.modules()} & {id(m) for m in subject.denoiser.modules()}


def test_quantised_fused_and_adapted_layers_are_refused(subject):
    twin = clone_tree(subject.denoiser)
    group = next(g for g in subject.structure.groups.values() if g.kind == "heads")
    attention = twin.get_submodule(group.owner)
    if not subject.name.startswith("var"):  # diffusers' own way of fusing
        attention.fused_projections = True
        with pytest.raises(UnsupportedError, match="unfuse_qkv_projections"):
            subject.units.structure(twin, Grain())
        attention.fused_projections = False
    attention.to_q.base_layer = torch.nn.Linear(1, 1)
    with pytest.raises(UnsupportedError, match="fuse_lora"):
        subject.units.structure(twin, Grain())
    del attention.to_q.base_layer
    attention.to_k._parameters["weight"] = torch.nn.Parameter(
        torch.zeros(attention.to_k.weight.shape, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(UnsupportedError, match="quantised"):
        subject.units.structure(twin, Grain())


def test_a_model_with_offloading_hooks_is_refused(subject):
    twin = clone_tree(subject.denoiser)
    twin._hf_hook = object()
    with pytest.raises(UnsupportedError, match="prune first"):
        pruned(twin, subject.structure, PruningPlan())
