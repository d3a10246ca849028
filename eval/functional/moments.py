"""Mean and covariance of feature vectors, accumulated in float64 and merged exactly enough to shard them.

Chan, Golub and LeVeque's parallel update keeps the scatter matrix about the running mean. The usual sum of
outer products minus ``n mu mu^T`` cancels: at a feature offset of 1e8 and unit variance nothing but rounding
is left of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.extend import ConfigError

#: Rows converted to float64 at once.
_BLOCK = 4096


def check_features(features: Tensor, *, name: str = "features") -> Tensor:
    """Return ``features`` if they are a matrix of finite numbers.

    Raises:
        ConfigError: on another shape, or naming the first of the rows with NaN or infinity.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ConfigError(f"{name} must have the shape [N, d] with N, d >= 1, not {list(features.shape)}")
    finite = torch.cat([torch.isfinite(block).all(dim=1) for block in features.split(_BLOCK)])
    bad = (~finite).nonzero().flatten()
    if len(bad):
        raise ConfigError(
            f"{name} holds NaN or infinity in {len(bad)} of {len(features)} rows, the first is row "
            f"{int(bad[0])}; "
            "a network run in half precision may overflow, a broken image may be black"
        )
    return features


def as_float64(features: Tensor) -> Tensor:
    """``features`` in float64, on the CPU where the device (MPS) has none."""
    if features.device.type == "mps":
        features = features.cpu()
    return features.to(torch.float64)


@dataclass(frozen=True)
class Moments:
    """First and second moments of ``n`` vectors.

    Attributes:
        n: number of vectors.
        mean: float64 ``[d]``.
        scatter: float64 ``[d, d]``, sum of outer products of the deviations from the mean.
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimension: int, device: torch.device | str = "cpu") -> Moments:
        """No vectors yet; the neutral element of :meth:`merge`."""
        zeros = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
        return cls(0, zeros[0].clone(), zeros)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of a feature matrix ``[N, d]`` of any float dtype.

        Raises:
            ConfigError: on a wrong shape or non-finite values.
        """
        check_features(features)
        total: Moments | None = None
        for block in features.split(_BLOCK):
            x = as_float64(block)
            mean = x.mean(dim=0)
            centred = x - mean
            part = cls(len(x), mean, centred.T @ centred)
            total = part if total is None else total.merge(part)
        assert total is not None  # check_features refuses an empty matrix
        return total

    @property
    def dimension(self) -> int:
        """Length d of the vectors."""
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance ``[d, d]`` (divided by n - 1).

        Raises:
            ConfigError: with fewer than two vectors.
        """
        if self.n < 2:
            raise ConfigError(f"a covariance needs at least two samples, there are {self.n}")
        return self.scatter / (self.n - 1)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together.

        Raises:
            ConfigError: if the dimensions differ.
        """
        if self.dimension != other.dimension:
            raise ConfigError(
                f"features of {self.dimension} and {other.dimension} dimensions can't be merged: they come "
                f"from "
                "different networks"
            )
        n = self.n + other.n
        if n == 0:
            return self
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter.addr_(delta, delta, alpha=self.n * other.n / n)
        return Moments(n, self.mean + delta * (other.n / n), scatter)

    def without(self, part: Moments) -> Moments:
        """Moments of what is left after taking out ``part``, which must be contained; inverse of
        :meth:`merge`.

        Raises:
            ConfigError: if ``part`` has as many vectors as this, or more.
        """
        n = self.n - part.n
        if n < 1:
            raise ConfigError(f"taking {part.n} samples out of {self.n} leaves no samples")
        mean = self.mean + (self.mean - part.mean) * (part.n / n)
        delta = part.mean - mean
        scatter = self.scatter - part.scatter
        scatter.addr_(delta, delta, alpha=-n * part.n / self.n)
        return Moments(n, mean, scatter)

    def pack(self) -> Tensor:
        """One float64 tensor ``[d + 2, d]``: the count, the mean, the scatter; so that all travel
        together.
        """
        count = torch.full_like(self.mean, float(self.n))
        return torch.cat([count[None], self.mean[None], self.scatter])

    @classmethod
    def unpack(cls, packed: Tensor) -> Moments:
        """Inverse of :meth:`pack`."""
        return cls(int(packed[0, 0]), packed[1], packed[2:])


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Moments of several sets together, in the order given.

    Raises:
        ConfigError: without a part, or if dimensions differ.
    """
    total: Moments | None = None
    for part in parts:
        total = part if total is None else total.merge(part)
    if total is None:
        raise ConfigError("there are no statistics to merge")
    return total
