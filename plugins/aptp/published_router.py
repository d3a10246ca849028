"""The router of the published checkpoints: compares the gates predicted for a prompt with the experts' codes.

Source: https://github.com/rezashkv/diffusion_pruning. That code compares sampled gates. The gates of a prompt are
sampled in every call, with noise that depends on the prompt's place in its batch; the gates of the codes were sampled
once, at the end of training. Both are cut to 0 or 1, except in modules with a depth gate: there the soft gates are
multiplied by the soft depth gate. Here the codes are kept as sampled, and the gates of a prompt are replaced by their
mean over the noise. The expert nearest to this mean is the one that the published code selects most often, and it
depends on the prompt alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from hasten.plugins.aptp.math import depth_probabilities, mean_gates, open_probability
from hasten.plugins.aptp.router import Router

__all__ = ["CodeRouter", "gate_vector"]


@dataclass(frozen=True)
class CodeRouter(Router):
    """A linear map of the prompt to gate logits, compared with the sampled gates of each code.

    Args:
        weight: (D, 768) of all gates, widths first, depth last.
        bias: (D,).
        codes: soft gates of the experts (K, D), from 0 to 1.
        widths: gates of each module (M,).
        depth_of: for each module the number of its depth gate, -1 for none (M,).
        depth_order: depth gates from the one that is kept longest (N,).
    """

    weight: Tensor
    bias: Tensor
    codes: Tensor
    widths: Tensor
    depth_of: Tensor
    depth_order: Tensor

    @property
    @override
    def experts(self) -> int:
        return len(self.codes)

    @override
    def probabilities(self, embedding: Tensor) -> Tensor:
        logits = F.linear(embedding.float().cpu(), self.weight.float(), self.bias.float())
        codes = gate_vector(self.codes, self.widths, self.depth_of)
        cosines = F.normalize(codes, dim=-1) @ F.normalize(self.mean_vector(logits), dim=-1)
        return torch.softmax(cosines / 0.05, -1)

    def mean_vector(self, logits: Tensor) -> Tensor:
        """Mean over the noise of the vector (D,) that sampled gates of these logits make."""
        count = int(self.widths.sum())
        deep = depth_probabilities(logits[count:])
        logits = torch.cat(
            [logits[:count], torch.zeros_like(deep).index_copy(0, self.depth_order.long(), deep)]
        )
        return gate_vector(mean_gates(logits), self.widths, self.depth_of, open_probability(logits))

    @classmethod
    @override
    def _expected(cls, tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
        total, modules = (max(1, tensors[name].numel()) for name in ("bias", "widths"))
        inputs, experts = tensors["weight"].shape[-1:].numel(), tensors["codes"].shape[:1].numel()
        shapes: dict[str, tuple[int, ...]] = {"weight": (total, max(1, inputs)), "bias": (total,)}
        shapes |= {"codes": (max(1, experts), total), "widths": (modules,), "depth_of": (modules,)}
        shapes["depth_order"] = (tensors["depth_order"].numel(),)
        integers = ("widths", "depth_of", "depth_order")
        return {name: (shape, name in integers) for name, shape in shapes.items()}

    @override
    def _problem(self) -> str | None:
        deep, width = len(self.depth_order), int(self.widths.sum())
        numbered = bool(((self.depth_of >= -1) & (self.depth_of < deep)).all())
        if sorted(self.depth_order.tolist()) != list(range(deep)) or not numbered:
            return f"depth_order and depth_of do not number {deep} depth gates"
        if int(self.widths.min()) < 1 or width + deep != len(self.bias):
            return (
                f"widths describes {width} gates in addition to {deep} depth gates, and the predictor has "
                f"{len(self.bias)}"
            )
        if not bool(((self.codes >= 0) & (self.codes <= 1)).all()):
            return "codes has to lie between 0 and 1"
        return None


def gate_vector(gates: Tensor, widths: Tensor, depth_of: Tensor, hard: Tensor | None = None) -> Tensor:
    """Gates (..., D) as they are compared, every module counting the same.

    Args:
        gates: soft gates (..., D), widths first. Those of a module with a depth gate are multiplied by it.
        widths: gates of each module (M,).
        depth_of: for each module the number of its depth gate, -1 for none (M,).
        hard: of all other modules and of the depth gates (..., D); ``gates`` cut at one half unless given.
    """
    count = int(widths.sum())
    hard = (gates >= 0.5).float() if hard is None else hard
    soft, deep = gates[..., :count].float(), gates[..., count:].float()
    number = depth_of.long().repeat_interleave(widths.long())
    products = soft * torch.cat([deep, torch.ones_like(deep[..., :1])], -1)[..., number]
    wide = torch.where(number >= 0, products, hard[..., :count])
    scale = widths.float().rsqrt().repeat_interleave(widths.long())
    return torch.cat([wide * scale, hard[..., count:]], -1)
