"""From a prompt to an expert: a pure function of the text, whatever batch, order or device it comes in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.extend import CheckpointError
from hasten.plugins.aptp.manifest import REMEDY

__all__ = [
    "BASE",
    "Decision",
    "PrototypeRouter",
    "Reason",
    "Router",
    "check_names",
    "check_router",
    "random_expert",
]

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
            CheckpointError: one is missing, or has the wrong shape or type.
        """
        names = [field.name for field in fields(cls)]
        check_names(tensors, names, place)
        width, hidden = (max(1, tensors[name].numel()) for name in ("mean", "bias"))
        rows = {name: max(1, tensors[name].shape[:1].numel()) for name in ("prototypes", "centres")}
        shapes: dict[str, tuple[int, ...]] = {"mean": (width,), "scale": (width,), "weight": (hidden, width)}
        shapes |= {"bias": (hidden,), "prototypes": (rows["prototypes"], hidden), "temperature": ()}
        shapes |= {"centres": (rows["centres"], width), "familiar": ()}
        check_router(tensors, shapes, place)
        for name in ("scale", "temperature"):
            if not bool((tensors[name] > 0).all()):
                raise CheckpointError(f"{place}: {name} has to be positive; {REMEDY}")
        return cls(**{name: tensors[name].float() for name in names})

    def _standard(self, embedding: Tensor) -> Tensor:
        return (embedding.float().cpu() - self.mean) / self.scale


def check_names(tensors: Mapping[str, Tensor], names: Sequence[str], place: str) -> None:
    """Refuse a router's file that lacks a tensor or has one that is not known.

    Raises:
        CheckpointError: names them.
    """
    missing = [name for name in names if name not in tensors]
    extra = sorted(set(tensors) - set(names))
    if missing or extra:
        odd = f"lacks {', '.join(missing)}" if missing else f"holds an unknown {extra[0]}"
        raise CheckpointError(f"{place} {odd}; {REMEDY}")


def check_router(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    place: str,
    whole: Sequence[str] = (),
) -> None:
    """Refuse tensors of other shapes, and other numbers than floating-point ones (``whole``: integers).

    Raises:
        CheckpointError: names the first.
    """
    for name, shape in shapes.items():
        value = tensors[name]
        if tuple(value.shape) != shape:
            found = tuple(value.shape)
            raise CheckpointError(f"{place}: {name} has shape {found} where {shape} was expected; {REMEDY}")
        if value.is_complex() or value.is_floating_point() == (name in whole):
            raise CheckpointError(f"{place}: {name} has numbers of type {value.dtype}; {REMEDY}")


def random_expert(prompt: str, shares: Tensor) -> int:
    """An expert drawn with probabilities ``shares`` (K,) from a hash of the prompt: always the same one."""
    digest = hashlib.sha256(prompt.encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return min(int((shares.double().cumsum(0) / shares.double().sum() <= point).sum()), len(shares) - 1)
