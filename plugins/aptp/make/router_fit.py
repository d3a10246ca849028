"""Fits the router to the errors of the finished experts: hard prompts to large experts, at a given mean cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.extend import ConfigError
from hasten.plugins.aptp.make.context import Noisy, TrainingContext, relative_error
from hasten.plugins.aptp.make.options import ExportOptions
from hasten.plugins.aptp.math import k_means
from hasten.plugins.aptp.router import PrototypeRouter

__all__ = ["Fitted", "error_table", "fit_router", "segment_routes"]

_CENTRES = 48
_HIDDEN = 24
_TEMPERATURE = 0.2
_CHUNK = 16


@dataclass(frozen=True)
class Fitted:
    """A router, the share of the calibration prompts that it sends to each expert (K,), and their mean cost."""

    router: PrototypeRouter
    traffic: Tensor
    mean_share: float


@torch.no_grad()
def error_table(
    context: TrainingContext, experts: Sequence[Callable[[Noisy], Tensor]], options: ExportOptions
) -> Tensor:
    """Squared error of each expert on each prompt, as a share of the energy of the base's prediction.

    All experts see the same noise. Each prompt is seen at four noise levels per draw and segment.

    Args:
        context: pipeline and data.
        experts: predictions (B, C, h, w) for a noisy batch.
        options: number of prompts, draws and segments, and the seed.

    Returns:
        (prompts, K, segments), float32, the noisiest segment first.
    """
    prompts, draws, segments = options.prompts, options.draws, options.segments
    table = torch.zeros(prompts, len(experts), segments)
    edges = (math.inf, *context.conditioner.segment_bounds(segments), 0.0)
    for first in range(0, prompts, _CHUNK):
        index = torch.arange(first, min(first + _CHUNK, prompts))
        for draw, segment in itertools.product(range(draws), range(segments)):
            generator = torch.Generator().manual_seed(options.seed + 1000 * first + draws * segment + draw)
            # A batch has four levels in equal parts: repeating the rows shows each prompt at all of them.
            rows = context.data.rows(index.repeat(4))
            noisy = context.noisy(rows, generator, edges[segment + 1], edges[segment])
            teacher = context.predict(context.denoiser, noisy)
            for number, predict in enumerate(experts):
                errors = relative_error(predict(noisy), teacher).view(4, -1).mean(0)
                table[index, number, segment] += errors / draws
    return table


def segment_routes(errors: Tensor, shares: Tensor) -> list[tuple[int, ...]]:
    """The routes (one expert for each segment) with the least mean error at their mean cost, cheapest first.

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
    """The router with the least expected error at a mean cost.

    Args:
        embeddings: of the calibration prompts (N, D).
        errors: of each expert on each of them (N, K).
        shares: cost of each expert as a share of the base's (K,).
        mean_share: mean cost to reach, between the least and the largest of ``shares``.
        steps: training steps.
        seed: of initialisation and clustering.

    Raises:
        ConfigError: all experts are cheaper, or all costlier, than ``mean_share``.
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
    router = _trained(embeddings.float(), errors + high * shares, steps, seed)
    chosen = torch.stack([router.probabilities(e) for e in embeddings]).argmax(1)
    traffic = torch.bincount(chosen, minlength=len(shares)).float() / len(chosen)
    return Fitted(router, traffic, float((traffic * shares).sum()))


def _trained(embeddings: Tensor, prices: Tensor, steps: int, seed: int) -> PrototypeRouter:
    """A router of prompts (N, D) to the expert of the least price (N, K)."""
    generator = torch.Generator().manual_seed(seed)
    mean, scale = embeddings.mean(0), embeddings.std(0).clamp_min(1e-4)
    standard = (embeddings - mean) / scale
    width, experts, wanted = embeddings.shape[1], prices.shape[1], prices.argmin(1)
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
    unit = F.normalize(standard, dim=-1)
    centres, _ = k_means(unit, _CENTRES, generator, unit=True)
    # New captions of the same kind are a little farther from the centres than the calibration prompts.
    familiar = (unit @ centres.T).amax(1).quantile(0.005) - 0.1
    return PrototypeRouter(
        mean,
        scale,
        weight.detach(),
        bias.detach(),
        prototypes.detach(),
        torch.tensor(_TEMPERATURE),
        centres,
        familiar,
    )
