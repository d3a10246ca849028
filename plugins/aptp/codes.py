"""The router of the published checkpoints: predicted gates against the experts' codes.

The published code compares gates that are sampled: those of the prompt at every call, with noise whose row depends on
the prompt's place in its batch, those of the codes once, when training ended. Of each sample it takes the hard gates,
and, where a module has a depth gate, the product of its soft gates and the soft depth gate instead. Codes are kept as
they were sampled, therefore, and a prompt's noise is replaced by its expectation: cosines grow with the mean of the
prompt's vector, so the expert nearest to this mean is the one that wins most often, and depends on the prompt alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.extend import CheckpointError
from hasten.plugins.aptp.manifest import REMEDY
from hasten.plugins.aptp.math import depth_probabilities, mean_gates, open_probability
from hasten.plugins.aptp.router import check_names, check_router

__all__ = ["CodeRouter", "gate_vector"]

_TENSORS = ("weight", "bias", "codes", "widths", "depth_of", "depth_order")


@dataclass(frozen=True)
class CodeRouter:
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
    threshold: float = -1.0

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.codes)

    def probabilities(self, embedding: Tensor) -> Tensor:
        """See :class:`hasten.plugins.aptp.router.Router`."""
        logits = F.linear(embedding.float().cpu(), self.weight.float(), self.bias.float())
        codes = gate_vector(self.codes, self.widths, self.depth_of)
        cosines = F.normalize(codes, dim=-1) @ F.normalize(self.mean_vector(logits), dim=-1)
        return torch.softmax(cosines / 0.05, -1)

    def familiarity(self, embedding: Tensor) -> float:  # noqa: ARG002
        """Always 0: the published router has no notion of prompts it does not know."""
        return 0.0

    def mean_vector(self, logits: Tensor) -> Tensor:
        """Mean over the noise of the vector (D,) that sampled gates of these logits make."""
        count = int(self.widths.sum())
        deep = depth_probabilities(logits[count:])
        logits = torch.cat(
            [logits[:count], torch.zeros_like(deep).index_copy(0, self.depth_order.long(), deep)]
        )
        return gate_vector(mean_gates(logits), self.widths, self.depth_of, open_probability(logits))

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        return {name: getattr(self, name).contiguous() for name in _TENSORS}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], place: str) -> CodeRouter:
        """The router of :meth:`tensors`.

        Raises:
            CheckpointError: one is missing, or the shapes disagree.
        """
        check_names(tensors, _TENSORS, place)
        weight, bias, codes, widths, depth_of, depth_order = (tensors[name] for name in _TENSORS)
        total, modules, deep = max(1, bias.numel()), max(1, widths.numel()), depth_order.numel()
        shapes = {"weight": (total, max(1, weight.shape[-1:].numel())), "bias": (total,)}
        shapes |= {"codes": (max(1, codes.shape[:1].numel()), total)}
        shapes |= {"widths": (modules,), "depth_of": (modules,), "depth_order": (deep,)}
        check_router(tensors, shapes, place, ("widths", "depth_of", "depth_order"))
        if sorted(depth_order.tolist()) != list(range(deep)) or not bool(
            ((depth_of >= -1) & (depth_of < deep)).all()
        ):
            raise CheckpointError(
                f"{place}: depth_order and depth_of do not number {deep} depth gates; {REMEDY}"
            )
        if int(widths.min()) < 1 or int(widths.sum()) + deep != total:
            raise CheckpointError(
                f"{place}: widths describes {int(widths.sum())} gates in addition to {deep} depth gates, "
                f"and the predictor has {total}; {REMEDY}"
            )
        if not bool(((codes >= 0) & (codes <= 1)).all()):
            raise CheckpointError(f"{place}: codes has to lie between 0 and 1; {REMEDY}")
        return cls(weight, bias, codes, widths, depth_of, depth_order)


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
