"""The formulas of HACK, on tensors. Attention rows are softmaxed in float32.

Sources: HACK (arXiv 2504.09261); the merge is that of LOOK-M (arXiv 2406.18139).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
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


def attention_statistics(attention: Tensor) -> tuple[Tensor, Tensor]:
    """How much attention depends on the query.

    Args:
        attention: weights (N, heads, n, T).

    Returns:
        ``sigma = mean_i |A_i|^2 - |mean_i A_i|^2`` (the sum over keys of the variance over queries), and the share
        ``sigma / mean_i |A_i|^2`` of the energy that depends on the query, both (heads,), averaged over N.
    """
    energy = attention.square().sum(-1).mean(-1)
    common = attention.mean(-2).square().sum(-1)
    return (energy - common).mean(0), (1 - common / energy).mean(0)


def contextual_heads(sigma: Tensor, ratio: Tensor, alpha: float | str) -> Tensor:
    """Which heads are contextual, boolean (layers, heads).

    Args:
        sigma: (layers, heads); with a number for ``alpha`` that share with the lowest ``sigma`` over all layers.
        ratio: (layers, heads); with ``"auto"`` those below one half.
        alpha: share of contextual heads, or ``"auto"``.
    """
    if alpha == "auto":
        return ratio < 0.5
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
    brought back
    to unit length, which cosine attention relies on.

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
