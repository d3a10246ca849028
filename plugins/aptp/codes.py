"""The router of the published checkpoints: predicted gates against the experts' codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten._errors import CheckpointError
from hasten.plugins.aptp.math import depth_probabilities, open_probability

__all__ = ["CodeRouter", "gate_vector"]

_TENSORS = ("weight", "bias", "codes", "widths", "depth_of", "depth_order")


@dataclass(frozen=True)
class CodeRouter:
    """A linear map of the prompt to gate logits, compared with the hard gates of each code.

    The published code adds random noise whose row depends on a prompt's place in its batch. Here the noise is replaced
    by its expectation: a gate is on where it would be on more often than not, so that a prompt's expert depends on the
    prompt alone.

    Args:
        weight: (D, 768) of all gates, widths first, depth last.
        bias: (D,).
        codes: hard gates of the experts (K, D), 0 or 1.
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
        logits = F.linear(embedding.float().cpu(), self.weight, self.bias)
        gates = self.expected_gates(logits)
        cosines = F.normalize(self._vector(self.codes), dim=-1) @ F.normalize(self._vector(gates), dim=-1)
        return torch.softmax(cosines / 0.05, -1)

    def familiarity(self, embedding: Tensor) -> float:  # noqa: ARG002
        """Always 0: the published router has no notion of prompts it does not know."""
        return 0.0

    def expected_gates(self, logits: Tensor) -> Tensor:
        """Hard gates (D,) of the mean decision."""
        count = int(self.widths.sum())
        wide = (open_probability(logits[:count]) >= 0.5).float()
        deep = depth_probabilities(logits[count:])
        gates = (open_probability(deep) >= 0.5).float()
        return torch.cat([wide, torch.zeros_like(gates).index_copy(0, self.depth_order.long(), gates)])

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        return {name: getattr(self, name).contiguous() for name in _TENSORS}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], place: str) -> CodeRouter:
        """The router of :meth:`tensors`.

        Raises:
            CheckpointError: one is missing, or the shapes disagree.
        """
        missing = [name for name in _TENSORS if name not in tensors]
        if missing:
            raise CheckpointError(f"{place} lacks {', '.join(missing)}; import the checkpoints again")
        weight, bias, codes, widths, depth_of, depth_order = (tensors[name] for name in _TENSORS)
        router = cls(weight, bias, codes, widths, depth_of, depth_order)
        total = int(router.widths.sum()) + len(router.depth_order)
        if router.weight.shape[0] != total or router.codes.shape[1] != total:
            raise CheckpointError(
                f"{place}: {total} gates are described, the predictor has {router.weight.shape[0]} and the codes "
                f"{router.codes.shape[1]}"
            )
        return router

    def _vector(self, gates: Tensor) -> Tensor:
        return gate_vector(gates, self.widths, self.depth_of)


def gate_vector(gates: Tensor, widths: Tensor, depth_of: Tensor) -> Tensor:
    """Gates (..., D) as they are compared: widths times the depth of their module, every module counting the same."""
    count = int(widths.sum())
    wide, deep = gates[..., :count].float(), gates[..., count:].float()
    ones = torch.ones_like(deep[..., :1])
    of_module = torch.cat([deep, ones], -1)[..., depth_of.long()]
    per_gate = of_module.repeat_interleave(widths.long(), -1)
    scale = widths.float().rsqrt().repeat_interleave(widths.long())
    return torch.cat([wide * per_gate * scale, deep], -1)
