"""Reordering the heads of self attention in the weights, so that the heads of a group lie next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hasten.plugins.hack.plan import CachePlan

if TYPE_CHECKING:
    from hasten.extend import OwnedJournal

__all__ = ["permute_heads", "reordered"]


def permute_heads(transformer: Any, order: Sequence[Sequence[int]], journal: OwnedJournal) -> None:
    """Give every block's self attention the heads in the given order; outputs change by rounding at most.

    Args:
        transformer: a :class:`NextScaleTransformer`.
        order: for every block, the numbers of its heads in their new order.
        journal: takes the edits back.
    """
    for block, heads in zip(transformer.blocks, order):
        attention = block.attn
        dim = attention.to_q.out_features // attention.heads
        rows = torch.cat([torch.arange(h * dim, (h + 1) * dim) for h in heads]).to(
            attention.to_q.weight.device
        )
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            _set(journal, layer, "weight", layer.weight[rows])
            if layer.bias is not None:
                _set(journal, layer, "bias", layer.bias[rows])
        _set(journal, attention.to_out, "weight", attention.to_out.weight[:, rows])
        _set(journal, attention, "logit_scale", attention.logit_scale[list(heads)])


def _set(journal: OwnedJournal, module: nn.Module, name: str, value: torch.Tensor) -> None:
    old = getattr(module, name)
    journal.set_attribute(module, name, nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad))


def reordered(plan: CachePlan, order: Sequence[Sequence[int]]) -> CachePlan:
    """The plan for weights whose heads were brought into ``order``."""
    rows = []
    for groups, heads in zip(plan.layers, order):
        place = {head: i for i, head in enumerate(heads)}
        rows.append(tuple(replace(g, heads=tuple(sorted(place[h] for h in g.heads))) for g in groups))
    prior = plan.prior
    if prior is not None:
        prior = torch.stack([layer[list(heads)] for layer, heads in zip(prior, order)])
    return replace(plan, layers=tuple(rows), prior=prior)
