"""Cost of gates that are being learned: the cost model's formula, differentiable, for many codes at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hasten.plugins.aptp.cost import CostModel

__all__ = ["soft_ratio"]


def soft_ratio(costs: CostModel, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> Tensor:
    """Share of the whole model's multiply-accumulates.

    Args:
        costs: of the denoiser.
        units: group id -> gates (K, units).
        blocks: block id -> gates (K,).

    Returns:
        (K,); equal to :meth:`CostModel.ratio` where all gates are 0 or 1.
    """
    lost: dict[tuple[str, str], Tensor] = {}
    for name, gates in units.items():
        group = costs.structure.groups[name]
        removed = (1 - gates).sum(-1)
        for cut in group.cuts:
            key = (cut.module, cut.axis)
            lost[key] = lost.get(key, torch.zeros_like(removed)) + cut.size * removed
    total: Tensor = torch.zeros(())
    for name, layer in costs.layers.items():
        wide_in = layer.wide_in - lost.get((name, "in"), 0)
        wide_out = layer.wide_out - lost.get((name, "out"), 0)
        total = total + _open(name, blocks) * (layer.rows * layer.taps / 1e6) * wide_in * wide_out
    for name, attended in costs.attentions.items():
        width = attended.width - lost.get((f"{name}.to_q", "out"), 0)
        total = total + _open(name, blocks) * (2.0 * attended.pairs / 1e6) * width
    return total / (costs.full.macs / 1e6)


def _open(name: str, blocks: Mapping[str, Tensor]) -> Tensor | float:
    inside = [gate for block, gate in blocks.items() if f"{name}.".startswith(f"{block}.")]
    result: Tensor | float = 1.0
    for gate in inside:
        result = result * gate
    return result
