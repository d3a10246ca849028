"""Fits the router to what the finished experts get wrong: hard prompts to large experts, at a given mean cost."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.extend import ConfigError
from hasten.plugins.aptp.make.search import Searched
from hasten.plugins.aptp.make.study import Study, relative_error
from hasten.plugins.aptp.make.tune import Tuned, TuneOptions, Tuner
from hasten.plugins.aptp.router import PrototypeRouter

__all__ = ["Fitted", "error_table", "fit_router", "segment_routes"]

_CENTRES = 48
_HIDDEN = 24
_TEMPERATURE = 0.2


@dataclass(frozen=True)
class Fitted:
    """A router, the shares of the calibration prompts it sends to each expert (K,), and their mean cost."""

    router: PrototypeRouter
    traffic: Tensor
    mean_share: float


@torch.no_grad()
def error_table(
    study: Study, searched: Searched, tuned: Tuned, prompts: int, draws: int, seed: int, segments: int = 1
) -> Tensor:
    """Distance from the base of each expert on each prompt in each timestep segment, as a share of the base's energy.

    Every expert sees the same noise; each prompt is seen at four levels in each draw and segment.

    Returns:
        (prompts, K, segments), the noisiest segment first.
    """
    tuner = Tuner(study, searched, TuneOptions(weights=tuned.weights, rank=tuned.about.get("rank", 4)))
    tuner.load(tuned)
    table = torch.zeros(prompts, len(tuner.models), segments)
    edges = (math.inf, *study.conditioner.segment_bounds(segments), 0.0)
    for first in range(0, prompts, 16):
        index = torch.arange(first, min(first + 16, prompts)) % len(study.data.latents)
        for draw, segment in itertools.product(range(draws), range(segments)):
            generator = torch.Generator().manual_seed(seed + 1000 * first + draws * segment + draw)
            # A batch has four levels in equal parts: repeating the rows shows each prompt at all of them.
            rows = study.data.rows(index.repeat(4))
            noisy = study.noisy(rows, generator, edges[segment + 1], edges[segment])
            teacher = study.predict(study.denoiser, noisy)
            for number in range(len(tuner.models)):
                student = tuner.predict(number, noisy)
                errors = relative_error(student, teacher).view(4, -1).mean(0)
                table[first : first + len(index), number, segment] += errors / draws
    return table


def segment_routes(errors: Tensor, shares: Tensor) -> list[tuple[int, ...]]:
    """Routes that no other beats in mean error at their mean cost: an expert for each segment, cheapest route first.

    Args:
        errors: mean error of each expert in each segment (K, S).
        shares: cost of each expert (K,).
    """
    routes: dict[tuple[int, ...], float] = {}
    for price in torch.logspace(-6, 4, 400):
        chosen = (errors + price * shares[:, None]).argmin(0)
        routes[tuple(chosen.tolist())] = float(shares[chosen].mean())
    return sorted(routes, key=routes.__getitem__)


def fit_router(
    embeddings: Tensor, errors: Tensor, shares: Tensor, mean_share: float, *, steps: int = 400, seed: int = 0
) -> Fitted:
    """A router of least expected error at a mean cost.

    Args:
        embeddings: of the calibration prompts (N, D).
        errors: of each expert on each of them (N, K).
        shares: cost of each expert (K,).
        mean_share: wanted mean cost.

    Raises:
        ConfigError: the experts are all cheaper, or all costlier, than ``mean_share``.
    """
    if not float(shares.min()) <= mean_share <= float(shares.max()):
        raise ConfigError(
            f"a mean cost of {mean_share:.1%} cannot be met with experts that cost {float(shares.min()):.1%} to "
            f"{float(shares.max()):.1%}; choose --mean-cost between them"
        )
    low, high = 0.0, 100.0 * float(errors.std().clamp_min(1e-6)) / float(shares.std().clamp_min(1e-6))
    for _ in range(24):
        price = (low + high) / 2
        cost = float(shares[(errors + price * shares).argmin(1)].mean())
        low, high = (price, high) if cost > mean_share else (low, price)
    wanted = (errors + high * shares).argmin(1)
    router = _trained(embeddings.float(), wanted, errors + high * shares, len(shares), steps, seed)
    chosen = torch.stack([router.probabilities(e) for e in embeddings]).argmax(1)
    traffic = torch.bincount(chosen, minlength=len(shares)).float() / len(chosen)
    return Fitted(router, traffic, float((traffic * shares).sum()))


def _trained(
    embeddings: Tensor, wanted: Tensor, prices: Tensor, experts: int, steps: int, seed: int
) -> PrototypeRouter:
    generator = torch.Generator().manual_seed(seed)
    mean, scale = embeddings.mean(0), embeddings.std(0).clamp_min(1e-4)
    standard = (embeddings - mean) / scale
    width = embeddings.shape[1]
    weight = (torch.randn(_HIDDEN, width, generator=generator) * width**-0.5).requires_grad_()
    bias = torch.zeros(_HIDDEN, requires_grad=True)
    prototypes = torch.randn(experts, _HIDDEN, generator=generator).requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias, prototypes], lr=0.02, weight_decay=0.05)
    regret = (prices - prices.min(1, keepdim=True).values) / prices.std().clamp_min(1e-9)
    for _ in range(steps):
        hidden = F.normalize(F.linear(standard, weight, bias), dim=-1)
        scores = hidden @ F.normalize(prototypes, dim=-1).T / _TEMPERATURE
        loss = F.cross_entropy(scores, wanted, label_smoothing=0.05)
        loss = loss + (torch.softmax(scores, -1) * regret).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    centres = _centres(F.normalize(standard, dim=-1), generator)
    familiar = (F.normalize(standard, dim=-1) @ centres.T).amax(1)
    # A new caption of the same kind lies a little farther from the centres than those they were made from.
    threshold = familiar.quantile(0.005) - 0.1
    return PrototypeRouter(
        mean,
        scale,
        weight.detach(),
        bias.detach(),
        prototypes.detach(),
        torch.tensor(_TEMPERATURE),
        centres,
        threshold,
    )


def _centres(unit: Tensor, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Spherical k-means."""
    centres = unit[torch.randperm(len(unit), generator=generator)[:_CENTRES]].clone()
    for _ in range(rounds):
        nearest = (unit @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, unit)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=-1), centres)
    return centres
