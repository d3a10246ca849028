"""The formulas against slow references."""

import math

import pytest
import torch
from torch.nn import functional as F

from hasten.plugins.aptp.math import (
    contrastive,
    depth_probabilities,
    hard_gates,
    log_ratio,
    normalised_code,
    open_probability,
    paper_gates,
    repair,
    sinkhorn,
    unit_scores,
)
from hasten.plugins.aptp.published_router import gate_vector


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_transport_shares_prompts_out_evenly():
    plan = sinkhorn(torch.tanh(noise(64, 4)), rounds=60)
    assert torch.allclose(plan.sum(1), torch.ones(64), atol=1e-4)
    assert torch.allclose(plan.sum(0), torch.full((4,), 16.0), atol=0.1)


def test_transport_is_the_textbook_iteration():
    cosines, epsilon = torch.tanh(noise(6, 3)), 0.05
    q = torch.exp(cosines.double() / epsilon).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 3
        q /= q.sum(0, keepdim=True) * 6
    assert torch.allclose(sinkhorn(cosines), (q * 6).T.float(), atol=1e-4)


def test_hard_gates_are_hard_forwards_and_soft_backwards():
    logits = noise(50).requires_grad_()
    gates = hard_gates(logits, 0.5)
    assert set(gates.detach().tolist()) <= {0.0, 1.0}
    gates.sum().backward()
    soft = torch.sigmoid(logits.detach() / 0.5)
    assert torch.allclose(logits.grad, soft * (1 - soft) / 0.5, atol=1e-6)


@pytest.mark.parametrize(("logit", "share"), [(-4.0, 0.31), (-3.0, 0.63), (-2.0, 0.93), (-1.0, 0.999)])
def test_the_closed_form_counts_open_gates(logit, share):
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1))
    found = (paper_gates(torch.full((40_000,), logit), uniform) >= 0.5).float().mean()
    assert float(open_probability(torch.tensor(logit))) == pytest.approx(share, abs=0.01)
    assert float(found) == pytest.approx(share, abs=0.01)


def test_depth_gates_close_from_the_end():
    logits = depth_probabilities(noise(14))
    assert bool((logits.diff() <= 1e-4).all())
    kept = torch.softmax(noise(14), 0)
    reference = torch.tensor([sum(kept[: 14 - j].tolist()) for j in range(14)])
    assert torch.allclose(torch.sigmoid(logits), reference, atol=1e-3)


def test_every_module_counts_the_same():
    vector = normalised_code(torch.ones(7), (1, 2, 4))
    assert torch.allclose(torch.stack([part.norm() for part in vector.split([1, 2, 4])]), torch.ones(3))
    gates = torch.tensor([1.0, 0, 1, 1, 1, 0])
    found = gate_vector(gates, torch.tensor([2, 2]), torch.tensor([1, -1]))
    assert torch.allclose(found, torch.tensor([0, 0, 2**-0.5, 2**-0.5, 1, 0]))


def test_the_contrastive_loss_is_least_where_similarities_agree():
    prompts = noise(12, 8)
    same, other = contrastive(prompts, 3 * prompts), contrastive(prompts, noise(12, 8, seed=1))
    assert float(same) < float(other)
    rows = F.normalize(prompts, dim=-1)
    target = torch.softmax(rows @ rows.T / 0.03, -1)
    slow = sum(-float(p) * math.log(max(float(p), 1e-30)) for p in target.flatten()) / 12
    assert float(same) == pytest.approx(slow, abs=1e-4)
    paper = contrastive(prompts, prompts, rowwise=False)
    assert float(paper) == pytest.approx(float(F.binary_cross_entropy(target, target)), abs=1e-6)


def test_the_budget_loss_is_symmetric_in_the_logarithm():
    assert float(log_ratio(torch.tensor(0.3), 0.6)) == pytest.approx(math.log(2))
    assert float(log_ratio(torch.tensor(1.2), 0.6)) == pytest.approx(math.log(2))


def layer(width=24, out=10, samples=400):
    mix = noise(width, width, seed=3)
    return noise(out, width, seed=4), noise(samples, width, seed=5) @ mix


def test_repair_is_the_least_squares_optimum():
    weight, inputs = layer()
    kept = torch.tensor([0, 1, 2, 5, 8, 9, 13, 20])
    found = repair(weight.double(), inputs.double().T @ inputs.double(), kept, damping=0.0)
    expected = torch.linalg.lstsq(inputs[:, kept].double(), inputs.double() @ weight.double().T).solution.T
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
def test_repair_never_makes_it_worse(damping):
    weight, inputs = layer()
    hessian = inputs.T @ inputs
    for number in (4, 12, 20, 24):
        kept = torch.arange(number)
        before = (inputs @ weight.T - inputs[:, kept] @ weight[:, kept].T).norm()
        after = (inputs @ weight.T - inputs[:, kept] @ repair(weight, hessian, kept, damping).T).norm()
        assert float(after) <= float(before) * (1 + 1e-4) + 0.05


def test_an_uncut_layer_is_left_alone():
    weight, inputs = layer()
    assert torch.allclose(repair(weight, inputs.T @ inputs, torch.arange(24)), weight, atol=1e-3)


def test_unit_scores_are_the_error_of_removing_one_column():
    weight, inputs = layer(width=6)
    hessian = inputs.double().T @ inputs.double()
    scores = unit_scores(weight.double(), hessian, 1, damping=0.0)
    for unit in range(6):
        kept = torch.tensor([i for i in range(6) if i != unit])
        solved = repair(weight.double(), hessian, kept, damping=0.0)
        error = (inputs.double() @ weight.double().T - inputs[:, kept].double() @ solved.T).square().sum()
        assert float(scores[unit]) == pytest.approx(float(error), rel=1e-4)
    pairs = unit_scores(weight.double(), hessian, 2, damping=0.0)
    assert torch.allclose(pairs, scores.view(3, 2).sum(1))
