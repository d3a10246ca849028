"""The formulas of HACK, on tensors. Attention rows are softmaxed in float32.

Sources: HACK (arXiv 2504.09261); the merge is that of LOOK-M (arXiv 2406.18139).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "FOCUS_SHARE",
    "HeadStatistics",
    "attention_statistics",
    "contextual_heads",
    "evenly_spaced",
    "merge_evicted",
    "pick",
    "scale_mass",
    "subset_attention",
]


def evenly_spaced(count: int, wanted: int, device: torch.device | None = None) -> Tensor:
    """``wanted`` indices in raster order out of ``count``; all of them if there are no more."""
    if count <= wanted:
        return torch.arange(count, device=device)
    return torch.linspace(0, count - 1, wanted, dtype=torch.float64).floor().long().to(device)


def subset_attention(query: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """Attention weights (N, heads, len(rows), T) of some queries, float32."""
    return torch.softmax(query[:, :, rows].float() @ keys.float().mT, dim=-1)


FOCUS_SHARE = 0.1
"""Share of the keys whose attention :attr:`HeadStatistics.focus` adds up."""


class HeadStatistics(NamedTuple):
    """Statistics that distinguish heads, each (heads,) or (layers, heads).

    Args:
        sigma: ``mean_i |A_i|^2 - |mean_i A_i|^2``, the sum over keys of the variance over queries.
        ratio: ``sigma / mean_i |A_i|^2``, the share of the energy that depends on the query.
        focus: mean attention to the tenth of the keys that get most of it.
    """

    sigma: Tensor
    ratio: Tensor
    focus: Tensor


def attention_statistics(attention: Tensor) -> HeadStatistics:
    """Statistics (heads,) of weights (N, heads, n, T), averaged over N."""
    energy = attention.square().sum(-1).mean(-1)
    columns = attention.mean(-2)
    common = columns.square().sum(-1)
    most = columns.topk(max(1, round(FOCUS_SHARE * columns.shape[-1])), dim=-1).values.sum(-1)
    return HeadStatistics((energy - common).mean(0), (1 - common / energy).mean(0), most.mean(0))


def contextual_heads(statistics: HeadStatistics, alpha: float | str) -> Tensor:
    """Which heads are contextual, boolean (layers, heads).

    Args:
        statistics: each (layers, heads).
        alpha: that share of the heads, those with the lowest ``sigma`` over all layers; or ``"auto"``: those whose
            queries look at the same keys (``ratio < 1/2``) and at few of them (``focus >= 1/2``). A head with
            uniform attention passes the first test, but none of its keys can be dropped.
    """
    sigma = statistics.sigma
    if alpha == "auto":
        return (statistics.ratio < 0.5) & (statistics.focus >= 0.5)
    lowest = sigma.flatten().argsort(stable=True)[: round(float(alpha) * sigma.numel())]
    return torch.zeros(sigma.numel(), dtype=torch.bool).index_fill(0, lowest, True).view(sigma.shape)


def scale_mass(attention: Tensor, ends: tuple[int, ...]) -> Tensor:
    """Mean attention (heads, scales) that queries pay to each scale, of weights (N, heads, n, T)."""
    starts = (0, *ends[:-1])
    columns = attention.mean((0, 2))
    return torch.stack([columns[:, a:b].sum(-1) for a, b in zip(starts, ends)], dim=-1)


def pick(scores: Tensor, count: int, deterministic: bool) -> Tensor:
    """Indices (N, heads, count) of the largest scores (N, heads, T)."""
    if deterministic:
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return scores.topk(count, dim=-1, sorted=False).indices


def merge_evicted(keys: Tensor, values: Tensor, keep: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Kept keys and values, each averaged with the dropped ones that resemble it most.

    A dropped pair goes to the kept key of the largest cosine similarity ``m`` and counts ``m`` times. Keys are
    brought back to unit length, which cosine attention relies on.

    Args:
        keys: (N, heads, T, dim).
        values: (N, heads, T, dim).
        keep: indices (N, heads, B).
        chunk: dropped keys compared at a time.
    """
    dim = keys.shape[-1]
    kept_k, kept_v = _take(keys, keep), _take(values, keep)
    dropped = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device).scatter(2, keep, False)
    rest = dropped.int().argsort(dim=-1, descending=True, stable=True)[..., : keys.shape[2] - keep.shape[2]]
    sum_k, sum_v = kept_k.float(), kept_v.float()
    weight = torch.ones(sum_k.shape[:3], device=keys.device)
    anchors = F.normalize(kept_k.float(), dim=-1)
    for part in rest.split(chunk, dim=-1):
        k, v = _take(keys, part).float(), _take(values, part).float()
        alike, target = (F.normalize(k, dim=-1) @ anchors.mT).max(-1)
        alike = alike.clamp(min=0)
        place = target[..., None].expand(-1, -1, -1, dim)
        sum_k = sum_k.scatter_add(2, place, alike[..., None] * k)
        sum_v = sum_v.scatter_add(2, place, alike[..., None] * v)
        weight = weight.scatter_add(2, target, alike)
    merged = F.normalize(sum_k / weight[..., None], dim=-1)
    return merged.to(keys.dtype), (sum_v / weight[..., None]).to(values.dtype)


def _take(x: Tensor, indices: Tensor) -> Tensor:
    return x.gather(2, indices[..., None].expand(-1, -1, -1, x.shape[-1]))
