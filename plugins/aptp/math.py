"""Gates, optimal transport, contrastive loss and least-squares repair: pure tensor code in the symbols of the sources.

Sources: APTP (arXiv 2406.12042) for gates, codes and the contrastive loss; SwAV (arXiv 2006.09882) for the use of
transport targets; Optimal Brain Surgeon and OBS-Diff for scores and repair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.plugins.aptp.make.ranks import all_reduced

__all__ = [
    "contrastive",
    "depth_probabilities",
    "hard_gates",
    "log_ratio",
    "mean_gates",
    "normalised_code",
    "open_probability",
    "paper_gates",
    "repair",
    "sinkhorn",
    "unit_scores",
]

TINY = 1e-20


def sinkhorn(similarity: Tensor, epsilon: float = 0.05, rounds: int = 3, *, across: bool = False) -> Tensor:
    """Entropic transport of prompts to codes.

    Args:
        similarity: cosines (B, K) of prompts and codes.
        epsilon: regularisation.
        rounds: of row and column scaling.
        across: sum over the ranks of the default process group, each of which holds a part of the batch.

    Returns:
        (B, K): each row sums to 1; after enough rounds every code gets an equal share of the (global) batch.
    """
    plan = torch.exp((similarity - similarity.max()) / epsilon)
    count = torch.tensor(float(len(similarity)), device=similarity.device)
    if across:
        plan = torch.exp((similarity - all_reduced(similarity.max(), "max")) / epsilon)
        count = all_reduced(count)
    codes = similarity.shape[1]
    plan = plan / _sum(plan.sum(), across)
    for _ in range(rounds):
        plan = plan / _sum(plan.sum(0), across).clamp_min(TINY) / codes
        plan = plan / plan.sum(1, keepdim=True).clamp_min(TINY) / count
    return plan * count


def hard_gates(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """0 or 1 in the forward pass, the sigmoid's slope in the backward pass.

    Args:
        logits: of any shape.
        temperature: of the sigmoid.
        noise: logistic noise of the same shape, or ``None``.
    """
    soft = torch.sigmoid((logits if noise is None else logits + noise) / temperature)
    return (soft >= 0.5).to(soft) + (soft - soft.detach())


def paper_gates(logits: Tensor, uniform: Tensor, temperature: float = 0.4, base: float = 3.0) -> Tensor:
    """Soft gates of the paper: one-sided Gumbel noise from ``uniform`` in (0, 1), ``sigmoid((l + g + b) / T)``."""
    gumbel = -torch.log(-torch.log(uniform + TINY) + TINY)
    return torch.sigmoid((logits + gumbel + base) / temperature)


def open_probability(logits: Tensor, base: float = 3.0) -> Tensor:
    """Probability that :func:`paper_gates` exceeds one half, in closed form: ``1 - exp(-exp(l + b))``."""
    return -torch.expm1(-torch.exp(logits + base))


def mean_gates(logits: Tensor, points: int = 64) -> Tensor:
    """Mean of :func:`paper_gates` over its noise, by the midpoints of ``points`` equal shares of it."""
    uniform = (torch.arange(points, dtype=logits.dtype, device=logits.device) + 0.5) / points
    return paper_gates(logits[..., None], uniform).mean(-1)


def depth_probabilities(logits: Tensor) -> Tensor:
    """Logits of the paper's depth gates in order of importance: reversed cumulated softmax, as logits."""
    kept = torch.softmax(logits, -1).cumsum(-1).flip(-1)
    return torch.log(kept + 1e-6) - torch.log1p(-(kept - 1e-6))


def normalised_code(gates: Tensor, widths: Sequence[int]) -> Tensor:
    """Gates (..., D) scaled so that every module counts the same, whatever its number of gates (``widths``)."""
    scale = torch.cat([torch.full((width,), width**-0.5) for width in widths])
    return gates * scale.to(gates)


def contrastive(prompts: Tensor, codes: Tensor, temperature: float = 0.03, *, rowwise: bool = True) -> Tensor:
    """How far the similarities of architectures are from those of prompts.

    Args:
        prompts: embeddings (B, D).
        codes: architecture vectors (B, E).
        temperature: of both softmaxes.
        rowwise: cross entropy of each row, which does not depend on the batch size; else the paper's mean binary cross
            entropy over all pairs.
    """
    target = torch.softmax(_cosines(prompts) / temperature, -1)
    logits = _cosines(codes) / temperature
    if rowwise:
        return -(target * torch.log_softmax(logits, -1)).sum(-1).mean()
    return F.binary_cross_entropy(torch.softmax(logits, -1), target)


def log_ratio(cost: Tensor, target: Tensor | float) -> Tensor:
    """``|log(cost / target)|``."""
    return (cost.log() - torch.as_tensor(target).to(cost).log()).abs()


def unit_scores(weight: Tensor, hessian: Tensor, size: int, damping: float = 0.01) -> Tensor:
    """What removing each unit of a consumer layer costs: ``sum W_j^2 / [H^-1]_jj`` over the unit's columns.

    Args:
        weight: (out, in) of the consumer.
        hessian: ``X X^T`` (in, in) of its inputs.
        size: columns of a unit.
        damping: added to the diagonal, as a share of its mean.

    Returns:
        Scores (in / size,).
    """
    inverse = torch.linalg.inv(_damped(hessian, damping))
    return (weight.square().sum(0) / inverse.diagonal().clamp_min(TINY)).view(-1, size).sum(1)


def repair(weight: Tensor, hessian: Tensor, kept: Tensor, damping: float = 0.01) -> Tensor:
    """Columns ``kept`` of a consumer, adjusted to make up for the others: ``W H[:, K] (H[K, K] + l I)^-1``.

    Args:
        weight: (out, in).
        hessian: ``X X^T`` (in, in).
        kept: numbers of the columns that stay.
        damping: of the diagonal, as a share of its mean; 0 is the least-squares optimum.

    Returns:
        (out, kept).
    """
    inner = _damped(hessian[kept][:, kept], damping)
    # The damped problem keeps the old weights as its prior, so that damping never moves an uncut layer.
    wanted = weight @ hessian[:, kept] + weight[:, kept] @ (inner - hessian[kept][:, kept])
    return torch.linalg.solve(inner, wanted, left=False)


def _damped(hessian: Tensor, damping: float) -> Tensor:
    diagonal = hessian.diagonal().mean().clamp_min(TINY)
    return hessian + damping * diagonal * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)


def _cosines(rows: Tensor) -> Tensor:
    unit = F.normalize(rows, dim=-1)
    return unit @ unit.T


def _sum(value: Tensor, across: bool) -> Tensor:
    return all_reduced(value) if across else value
