"""What a figure was made with. Figures of different fingerprints never share a column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hasten.extend import ConfigError


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a metric's figures.

    Attributes:
        metric: name of the metric.
        version: version of its implementation; raised when figures change.
        variant: which of several published definitions.
        network: name of the network, empty for none.
        weights: hash of its weights (:func:`hash_weights`), empty for none.
        preprocessing: how images became its input.
        details: anything else that moves the figure (dtype, bandwidth, text handling), JSON types only.
    """

    metric: str
    version: str = "1"
    variant: str = ""
    network: str = ""
    weights: str = ""
    preprocessing: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "metric": self.metric,
            "version": self.version,
            "variant": self.variant,
            "network": self.network,
            "weights": self.weights,
            "preprocessing": self.preprocessing,
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Fingerprint:
        """Inverse of :meth:`as_dict`.

        Raises:
            ConfigError: if the fields are not those of a fingerprint.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"this is not a metric's fingerprint: {sorted(fields)}") from error

    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ where anything above differs."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def differences(self, other: Fingerprint) -> dict[str, tuple[Any, Any]]:
        """Fields that differ, ``name -> (mine, the other's)``; details by their own names."""
        mine, theirs = self.as_dict(), other.as_dict()
        mine |= mine.pop("details")
        theirs |= theirs.pop("details")
        names = sorted(mine.keys() | theirs.keys())
        return {
            name: (mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)
        }


def require_same(first: Fingerprint, second: Fingerprint) -> None:
    """Refuse to compare figures or statistics that were made differently.

    Raises:
        ConfigError: names every field that differs.
    """
    different = first.differences(second)
    if different:
        listed = "; ".join(f"{name}: {a!r} against {b!r}" for name, (a, b) in different.items())
        raise ConfigError(f"these were computed differently and can't be compared ({listed})")


def hash_weights(module: nn.Module) -> str:
    """SHA-256 (16 digits) over names, dtypes, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]
