"""From a prompt to an expert: a pure function of the text, whatever batch, order or device it comes in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten._errors import CheckpointError

__all__ = ["BASE", "Decision", "PrototypeRouter", "Reason", "Router", "random_expert"]

BASE = -1
"""Number of the whole, unpruned denoiser."""

Reason = Literal[
    "router", "static", "random", "coalesced", "single", "unfamiliar", "unsure", "too long", "no text"
]


@dataclass(frozen=True)
class Decision:
    """Where one prompt goes.

    Args:
        expert: number of the expert, :data:`BASE` for the whole model.
        confidence: the router's probability of its choice.
        reason: what decided.
    """

    expert: int
    confidence: float
    reason: Reason


class Router(Protocol):
    """What a bundle needs to choose."""

    @property
    def experts(self) -> int:
        """Number of experts."""

    def probabilities(self, embedding: Tensor) -> Tensor:
        """Of each expert (K,), for a prompt embedding (D,), float32 on the CPU."""

    def familiarity(self, embedding: Tensor) -> float:
        """How close a prompt is to those the router was made from; below :attr:`threshold` it is unfamiliar."""

    @property
    def threshold(self) -> float:
        """Least familiarity of a known prompt."""

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""


@dataclass(frozen=True)
class PrototypeRouter:
    """Cosine of a linear map of the prompt with one prototype for each expert.

    Args:
        mean: of the training prompts' embeddings (D,).
        scale: their standard deviation (D,).
        weight: (H, D).
        bias: (H,).
        prototypes: (K, H).
        temperature: of the softmax over cosines, ().
        centres: representative training prompts, standardised and of unit length (C, D).
        familiar: least cosine to the nearest centre of a known prompt, ().
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    prototypes: Tensor
    temperature: Tensor
    centres: Tensor
    familiar: Tensor

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.prototypes)

    @property
    def threshold(self) -> float:
        """Least familiarity of a known prompt."""
        return float(self.familiar)

    def probabilities(self, embedding: Tensor) -> Tensor:
        """See :class:`Router`."""
        hidden = F.linear(self._standard(embedding), self.weight, self.bias)
        cosines = F.normalize(hidden, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        return torch.softmax(cosines / self.temperature, -1)

    def familiarity(self, embedding: Tensor) -> float:
        """See :class:`Router`."""
        return float((self.centres @ F.normalize(self._standard(embedding), dim=-1)).max())

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`Router`."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], place: str) -> PrototypeRouter:
        """The router of :meth:`tensors`.

        Raises:
            CheckpointError: one is missing, or has the wrong shape.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise CheckpointError(f"{place} lacks {', '.join(missing)}; get the bundle again")
        router = cls(**{name: tensors[name].float() for name in names})
        width, hidden = len(router.mean), len(router.bias)
        shapes = {"scale": (width,), "weight": (hidden, width), "centres": (len(router.centres), width)}
        shapes["prototypes"] = (router.experts, hidden)
        for name, shape in shapes.items():
            found = tuple(getattr(router, name).shape)
            if found != shape:
                raise CheckpointError(f"{place}: {name} has shape {found} where {shape} was expected")
        return router

    def _standard(self, embedding: Tensor) -> Tensor:
        return (embedding.float().cpu() - self.mean) / self.scale


def random_expert(prompt: str, shares: Tensor) -> int:
    """An expert drawn with probabilities ``shares`` (K,) from a hash of the prompt: always the same one."""
    digest = hashlib.sha256(prompt.encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return min(int((shares.double().cumsum(0) / shares.double().sum() <= point).sum()), len(shares) - 1)
