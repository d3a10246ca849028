"""Distances between sets of images: Frechet distance (FID), KID and CMMD, on any feature network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.frechet import (
    covariance_factor,
    frechet_distance,
    frechet_distance_to,
    noise_floor,
)
from hasten.eval.functional.mmd import (
    CMMD_SCALE,
    CMMD_SIGMA,
    cmmd,
    gaussian_kernel,
    kernel_sums,
    median_bandwidth,
    of_directions,
    polynomial_kernel,
)
from hasten.eval.functional.moments import Moments, merge_all
from hasten.eval.metric import Batch, Features, Need, SetFigure, SetMetric
from hasten.eval.metrics.intervals import (
    Statistic,
    frechet_difference,
    frechet_estimate,
    mmd_difference,
    mmd_estimate,
)
from hasten.eval.networks.features import FeatureNetwork, load_feature_network
from hasten.eval.statistics import Estimate, Grouping
from hasten.eval.statistics.jackknife import GROUPS
from hasten.extend import ConfigError

_SET: frozenset[Need] = frozenset({"image", "reference"})


class _FeatureMetric(SetMetric):
    """A set metric on the vectors of one feature network, under the name ``"features"``."""

    needs = _SET
    higher_is_better = False

    def __init__(
        self, network: FeatureNetwork, groups: int, details: Mapping[str, object], **options: Any
    ) -> None:
        self.network = network
        self._groups, self._details = groups, details
        super().__init__(**options)

    def embed(self, batch: Batch) -> Features:
        """``{"features": float32 [N, d]}``."""
        return {"features": self.network(batch.images)}

    def fingerprint(self) -> Fingerprint:
        """Network, preprocessing and the metric's own settings."""
        return self.network.fingerprint(self.name, **self._details)

    def _width(self) -> int:
        return self.network.dimension


def _unpacked(state: Tensor | list[Tensor]) -> list[Moments]:
    """Moments packed below each other ``[k (d + 2), d]``, or in a list of such tensors."""
    blocks = [state] if isinstance(state, Tensor) else state
    return [
        Moments.unpack(packed) for rows in blocks if len(rows) for packed in rows.split(rows.shape[1] + 2)
    ]


class Fid(_FeatureMetric):
    """Frechet distance of features. Only with Inception is it called FID.

    The reference may be embedded samples or moments (a statistics file's). As a ``torchmetrics.Metric`` it keeps
    moments, ``(d + 2) x d`` float64 a side, whatever the number of images.

    Args:
        network: see :func:`~hasten.eval.networks.features.load_feature_network`.
        preset: preprocessing preset.
        weights: Inception's weights file.
        allow_download: let Inception's weights be fetched.
        groups: groups of the jackknife.
        device: where to run.
        options: ``reset_real_features``, and those of ``torchmetrics.Metric``.
    """

    def __init__(
        self,
        network: nn.Module | FeatureNetwork | str | Path = "inception",
        preset: str | None = None,
        *,
        weights: str | Path | None = None,
        allow_download: bool = False,
        groups: int = GROUPS,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        loaded = load_feature_network(
            network, preset=preset, weights=weights, allow_download=allow_download, device=device
        )
        self.name = "fid" if loaded.name.startswith("inception") else "frechet_distance"
        super().__init__(loaded, groups, {}, **options)

    # One block of packed moments a side; blocks of several processes stand below each other.
    _rows_dtype = torch.float64

    def _add(self, side: str, features: Tensor) -> None:
        before: list[Tensor] = getattr(self, side)
        own = Moments.of(features.to(self.device))
        setattr(self, side, [merge_all([*_unpacked(before), own]).pack()])

    def compute(self) -> Tensor:
        """The distance, a float64 scalar.

        Raises:
            ConfigError: with fewer than two images on a side.
        """
        sides = [_unpacked(side) for side in (self.fake, self.real)]
        if not all(sides):
            raise ConfigError(f"{self.name} needs at least two samples on each side")
        fake, real = map(merge_all, sides)
        return torch.tensor(frechet_distance(fake, real).value, dtype=torch.float64, device=self.device)

    @staticmethod
    def _moments(reference: Features | Moments) -> Moments:
        return reference if isinstance(reference, Moments) else Moments.of(reference["features"])

    def value(self, features: Features, reference: Features | Moments) -> float:
        """The distance, not below zero."""
        moments = self._moments(reference)
        return frechet_distance_to(features["features"], moments, covariance_factor(moments)).value

    def aggregate(
        self,
        features: Features,
        reference: Features | Moments,
        **grouping: Unpack[Grouping],
    ) -> SetFigure:
        """Raw distance with a grouped-jackknife interval, beside the noise floor at these sample sizes."""
        moments, x = self._moments(reference), features["features"]
        grouping.setdefault("groups", self._groups)
        estimate = frechet_estimate(x, moments, **grouping)
        return SetFigure(estimate, {"noise_floor": noise_floor(moments, len(x), moments.n)})

    def difference(
        self,
        base: Features,
        candidate: Features,
        reference: Features | Moments,
        **grouping: Unpack[Grouping],
    ) -> Estimate:
        """Paired difference with a grouped-jackknife interval; the bias of the sample size cancels."""
        grouping.setdefault("groups", self._groups)
        return frechet_difference(
            base["features"], candidate["features"], self._moments(reference), **grouping
        )


class _Mmd(_FeatureMetric):
    """A squared kernel discrepancy; the unbiased statistic carries the interval unless published
    otherwise.
    """

    @abstractmethod
    def _statistic(self, reference: Tensor) -> Statistic:
        """What is computed against the rows of ``reference``."""

    def value(self, features: Features, reference: Features) -> float:
        """The statistic, without an interval."""
        x, y = features["features"], reference["features"]
        statistic = self._statistic(y)
        kernel = statistic.kernel
        return statistic.of(
            kernel_sums(x, None, kernel), kernel_sums(y, None, kernel), kernel_sums(x, y, kernel)
        )

    def aggregate(self, features: Features, reference: Features, **grouping: Unpack[Grouping]) -> SetFigure:
        """The statistic with a grouped-jackknife interval."""
        x, y = features["features"], reference["features"]
        grouping.setdefault("groups", self._groups)
        return SetFigure(mmd_estimate(x, y, self._statistic(y), **grouping))

    def difference(
        self, base: Features, candidate: Features, reference: Features, **grouping: Unpack[Grouping]
    ) -> Estimate:
        """Paired difference; the term within the reference cancels."""
        a, b, y = base["features"], candidate["features"], reference["features"]
        grouping.setdefault("groups", self._groups)
        return mmd_difference(a, b, y, self._statistic(y), **grouping)


class Kid(_Mmd):
    """Kernel Inception distance, the full unbiased statistic. Arguments as :class:`Fid`."""

    name = "kid"

    def __init__(
        self,
        network: nn.Module | FeatureNetwork | str | Path = "inception",
        preset: str | None = None,
        *,
        weights: str | Path | None = None,
        allow_download: bool = False,
        groups: int = GROUPS,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        loaded = load_feature_network(
            network, preset=preset, weights=weights, allow_download=allow_download, device=device
        )
        details = {"kernel": "(x.y/d + 1)^3", "statistic": "unbiased"}
        super().__init__(loaded, groups, details, **options)

    def _statistic(self, reference: Tensor) -> Statistic:  # noqa: ARG002
        return Statistic(polynomial_kernel)


#: Published network of CMMD.
CMMD_MODEL = "openai/clip-vit-large-patch14-336"


class Cmmd(_Mmd):
    """CLIP maximum mean discrepancy, biased as published; the unbiased form is among the extras.

    Args:
        network: CLIP folder or hub id (default the published network), or a ready ``ClipNetwork`` whose
            geometry is ``"square"``; or any feature network, whose rows are then normalised.
        sigma: bandwidth; ``None`` takes the median distance within the reference, which sees spread as well
            (then the metric is called ``mmd_clip_median`` and is unbiased).
        groups: groups of the jackknife.
        device: where to run.
        options: ``reset_real_features``, and those of ``torchmetrics.Metric``.
    """

    def __init__(
        self,
        network: object = CMMD_MODEL,
        *,
        sigma: float | None = CMMD_SIGMA,
        groups: int = GROUPS,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        from hasten.eval.networks.clip import as_clip

        if not isinstance(network, FeatureNetwork):
            clip = as_clip(network, device, geometry="square")
            if clip.geometry != "square":
                raise ConfigError(
                    "CMMD crops to the largest square before resizing; load the CLIP network with "
                    "geometry='square'"
                )
            network = clip.as_feature_network()
        self.name = "cmmd" if sigma is not None else "mmd_clip_median"
        self.unbiased = sigma is None
        self._sigma = sigma
        statistic = "unbiased" if self.unbiased else "biased"
        details: dict[str, object] = {"sigma": sigma or "median of the reference", "statistic": statistic}
        super().__init__(network, groups, details, **options)

    def _bandwidth(self, reference: Tensor) -> float:
        return self._sigma or median_bandwidth(reference, directions=True)

    def _statistic(self, reference: Tensor) -> Statistic:
        kernel = of_directions(gaussian_kernel(self._bandwidth(reference)))
        return Statistic(kernel, self.unbiased, CMMD_SCALE)

    def aggregate(
        self,
        features: Features,
        reference: Features,
        **grouping: Unpack[Grouping],
    ) -> SetFigure:
        """The statistic with its interval; extras hold both forms and the bandwidth."""
        figure = super().aggregate(features, reference, **grouping)
        x, y = features["features"], reference["features"]
        sigma = self._bandwidth(y)
        both = cmmd(x, y, sigma=sigma)
        extras = {"biased": both.biased, "sigma": sigma}
        if both.unbiased is not None:
            extras["unbiased"] = both.unbiased
        return SetFigure(figure.estimate, extras)
