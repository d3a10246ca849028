"""Gates, optimal transport, contrastive loss and least-squares repair: pure tensor code in the symbols of the sources.

Sources: APTP (arXiv 2406.12042) for gates, codes and the contrastive loss; SwAV (arXiv 2006.09882) for the use of
transport targets; Optimal Brain Surgeon and OBS-Diff for scores and repair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.plugins.aptp.make.processes import all_reduced

__all__ = [
    "contrastive",
    "depth_probabilities",
    "hard_gates",
    "k_means",
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
    """Entropic optimal transport of prompts to codes, by Sinkhorn iterations (SwAV).

    Args:
        similarity: cosines (B, K) of prompts and codes.
        epsilon: weight of the entropy, > 0.
        rounds: number of row and column scalings.
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


def k_means(
    rows: Tensor, count: int, generator: torch.Generator, *, unit: bool = False, rounds: int = 20
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm, started from some of the rows.

    Args:
        rows: (N, D), of unit length if ``unit``.
        count: number of clusters; fewer if there are fewer rows.
        generator: draws the rows to start from.
        unit: keep centres at unit length (spherical k-means).
        rounds: number of updates.

    Returns:
        Centres (K, D), and the cluster of each row (N,) before the last update.
    """
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]].clone()
    nearest = torch.zeros(len(rows), dtype=torch.long)
    for _ in range(rounds):
        nearest = torch.cdist(rows, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        sizes = torch.bincount(nearest, minlength=len(centres))[:, None]
        means = F.normalize(sums, dim=-1) if unit else sums / sizes.clamp_min(1)
        centres = torch.where(sizes > 0, means, centres)
    return centres, nearest


def hard_gates(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Straight-through gates: 0 or 1 in the forward pass, the slope of the sigmoid in the backward pass.

    Args:
        logits: of any shape.
        temperature: of the sigmoid, > 0.
        noise: logistic noise of the same shape, or ``None``.

    Returns:
        Gates of the shape of ``logits``.
    """
    soft = torch.sigmoid((logits if noise is None else logits + noise) / temperature)
    return (soft >= 0.5).to(soft) + (soft - soft.detach())


def paper_gates(logits: Tensor, uniform: Tensor, temperature: float = 0.4, base: float = 3.0) -> Tensor:
    """Soft gates of the paper, ``sigmoid((l + g + b) / T)``, with Gumbel noise ``g`` from ``uniform`` in (0, 1)."""
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
    """Logits (..., N) of the paper's depth gates, most important block first: reversed cumulated softmax, as logits."""
    kept = torch.softmax(logits, -1).cumsum(-1).flip(-1)
    return torch.log(kept + 1e-6) - torch.log1p(-(kept - 1e-6))


def normalised_code(gates: Tensor, widths: Sequence[int]) -> Tensor:
    """Gates (..., D) scaled so that every module counts the same, whatever its number of gates (``widths``)."""
    scale = torch.cat([torch.full((width,), width**-0.5) for width in widths])
    return gates * scale.to(gates)


def contrastive(prompts: Tensor, codes: Tensor, temperature: float = 0.03, *, rowwise: bool = True) -> Tensor:
    """Contrastive loss: similar prompts should have similar architectures.

    Args:
        prompts: embeddings (B, D).
        codes: architecture vectors (B, E).
        temperature: of both softmaxes, > 0.
        rowwise: cross entropy of each row, which does not depend on the batch size; otherwise the paper's mean binary
            cross entropy over all pairs.

    Returns:
        The loss, ().
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
    """Error that removing each unit of a layer causes: ``sum W_j^2 / [H^-1]_jj`` over the unit's columns (OBS-Diff).

    Args:
        weight: (out, in) of the layer that reads the units.
        hessian: ``X X^T`` (in, in) of its inputs.
        size: number of columns of a unit.
        damping: added to the diagonal, as a share of its mean, >= 0.

    Returns:
        Scores (in / size,).
    """
    inverse = torch.linalg.inv(_damped(hessian, damping))
    scores: Tensor = weight.square().sum(0) / inverse.diagonal().clamp_min(TINY)
    return scores.view(-1, size).sum(1)


def repair(weight: Tensor, hessian: Tensor, kept: Tensor, damping: float = 0.01) -> Tensor:
    """Remaining columns of a layer, fitted to replace the removed ones: ``W H[:, K] (H[K, K] + l I)^-1``.

    Args:
        weight: (out, in).
        hessian: ``X X^T`` (in, in) of the layer's inputs.
        kept: numbers of the columns that stay, integer (kept,).
        damping: added to the diagonal, as a share of its mean; 0 gives the least-squares optimum.

    Returns:
        (out, kept).
    """
    inner = _damped(hessian[kept][:, kept], damping)
    # The damped problem keeps the old weights as its prior, so that damping never moves an uncut layer.
    wanted = weight @ hessian[:, kept] + weight[:, kept] @ (inner - hessian[kept][:, kept])
    solved: Tensor = torch.linalg.solve(inner, wanted, left=False)
    return solved


def _damped(hessian: Tensor, damping: float) -> Tensor:
    diagonal = hessian.diagonal().mean().clamp_min(TINY)
    return hessian + damping * diagonal * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)


def _cosines(rows: Tensor) -> Tensor:
    unit = F.normalize(rows, dim=-1)
    return unit @ unit.T


def _sum(value: Tensor, across: bool) -> Tensor:
    return all_reduced(value) if across else value
