"""From a prompt to an expert: a pure function of the text, independent of batch, order and device."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from hasten.extend import CheckpointError
from hasten.plugins.aptp.manifest import REMEDY

__all__ = ["BASE", "Decision", "PrototypeRouter", "Reason", "Router", "random_expert"]

BASE = -1
"""Number of the whole, unpruned denoiser."""

Reason = Literal[
    "router", "static", "random", "coalesced", "single", "unfamiliar", "unsure", "too long", "no text"
]


@dataclass(frozen=True)
class Decision:
    """Where one prompt is sent.

    Args:
        expert: number of the expert, :data:`BASE` for the whole model.
        confidence: the router's probability of its choice, in [0, 1].
        reason: what decided.
    """

    expert: int
    confidence: float
    reason: Reason


@dataclass(frozen=True)
class Router(ABC):
    """Scores the experts of a bundle for a prompt. The fields of a subclass are the tensors that are stored."""

    @property
    @abstractmethod
    def experts(self) -> int:
        """Number of experts, K."""

    @property
    def threshold(self) -> float:
        """Least :meth:`familiarity` of a known prompt."""
        return -1.0

    @abstractmethod
    def probabilities(self, embedding: Tensor) -> Tensor:
        """Probability of each expert (K,), float32 on the CPU, for a prompt embedding (D,)."""

    def familiarity(self, embedding: Tensor) -> float:  # noqa: ARG002
        """How close a prompt is to those the router was made from, a cosine; 0 if the router does not know."""
        return 0.0

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], place: str) -> Self:
        """The router of :meth:`tensors`.

        Args:
            tensors: by name.
            place: file they come from, for messages.

        Raises:
            CheckpointError: a tensor is missing or unknown, or has the wrong shape, type or range.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in tensors]
        extra = sorted(set(tensors) - set(names))
        if missing or extra:
            odd = f"lacks {', '.join(missing)}" if missing else f"holds an unknown {extra[0]}"
            raise CheckpointError(f"{place} {odd}; {REMEDY}")
        for name, (shape, whole) in cls._expected(tensors).items():
            value, found = tensors[name], tuple(tensors[name].shape)
            if found != shape:
                raise CheckpointError(
                    f"{place}: {name} has shape {found} where {shape} was expected; {REMEDY}"
                )
            if value.is_complex() or value.is_floating_point() == whole:
                raise CheckpointError(f"{place}: {name} has numbers of type {value.dtype}; {REMEDY}")
        router = cls(**{name: tensors[name] for name in names})
        if problem := router._problem():
            raise CheckpointError(f"{place}: {problem}; {REMEDY}")
        return router

    @classmethod
    @abstractmethod
    def _expected(cls, tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Name -> (shape, whether it holds integers), from the sizes that are free."""

    @abstractmethod
    def _problem(self) -> str | None:
        """What is wrong with the values, if something is."""


@dataclass(frozen=True)
class PrototypeRouter(Router):
    """Compares a linear map of the prompt with one prototype for each expert, by cosine.

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
    @override
    def experts(self) -> int:
        return len(self.prototypes)

    @property
    @override
    def threshold(self) -> float:
        return float(self.familiar)

    @override
    def probabilities(self, embedding: Tensor) -> Tensor:
        hidden = F.linear(self._standard(embedding), self.weight.float(), self.bias.float())
        cosines = F.normalize(hidden, dim=-1) @ F.normalize(self.prototypes.float(), dim=-1).T
        return torch.softmax(cosines / self.temperature.float(), -1)

    @override
    def familiarity(self, embedding: Tensor) -> float:
        return float((self.centres.float() @ F.normalize(self._standard(embedding), dim=-1)).max())

    @classmethod
    @override
    def _expected(cls, tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
        width, hidden = (max(1, tensors[name].numel()) for name in ("mean", "bias"))
        experts, centres = (max(1, tensors[name].shape[:1].numel()) for name in ("prototypes", "centres"))
        shapes: dict[str, tuple[int, ...]] = {"mean": (width,), "scale": (width,), "weight": (hidden, width)}
        shapes |= {"bias": (hidden,), "prototypes": (experts, hidden), "temperature": ()}
        shapes |= {"centres": (centres, width), "familiar": ()}
        return {name: (shape, False) for name, shape in shapes.items()}

    @override
    def _problem(self) -> str | None:
        odd = [name for name in ("scale", "temperature") if not bool((getattr(self, name) > 0).all())]
        return f"{odd[0]} has to be positive" if odd else None

    def _standard(self, embedding: Tensor) -> Tensor:
        return (embedding.float().cpu() - self.mean.float()) / self.scale.float()


def random_expert(prompt: str, shares: Tensor) -> int:
    """An expert drawn from a hash of the prompt with probabilities ``shares`` (K,): the same one for equal prompts."""
    digest = hashlib.sha256(prompt.encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return min(int((shares.double().cumsum(0) / shares.double().sum() <= point).sum()), len(shares) - 1)
