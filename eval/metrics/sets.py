"""Distances between sets of images: Frechet distance (FID), KID and CMMD, on any feature network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.frechet import covariance_factor, frechet_distance_to, noise_floor
from hasten.eval.functional.mmd import (
    CMMD_SCALE,
    CMMD_SIGMA,
    Kernel,
    cmmd,
    discrepancy,
    gaussian_kernel,
    kernel_sums,
    median_bandwidth,
    normalized,
    polynomial_kernel,
)
from hasten.eval.functional.moments import Moments
from hasten.eval.metric import Batch, Features, Need, SetFigure, SetMetric
from hasten.eval.metrics.intervals import frechet_difference, frechet_estimate, mmd_difference, mmd_estimate
from hasten.eval.networks.features import FeatureNetwork, load_feature_network
from hasten.eval.statistics import Estimate
from hasten.extend import ConfigError

_SET: frozenset[Need] = frozenset({"image", "reference"})


class _FeatureMetric(SetMetric):
    """A set metric on the vectors of one feature network, under the name ``"features"``."""

    needs = _SET
    higher_is_better = False

    def __init__(self, network: FeatureNetwork, details: dict[str, object]) -> None:
        self.network = network
        self._details = details

    def embed(self, batch: Batch) -> Features:
        """``{"features": float32 [N, d]}``."""
        return {"features": self.network(batch.images)}

    def fingerprint(self) -> Fingerprint:
        """Network, preprocessing and the metric's own settings."""
        return self.network.fingerprint(self.name, **self._details)


class Fid(_FeatureMetric):
    """Frechet distance of features. Only with Inception is it called FID.

    The reference may be embedded samples or moments (a statistics file's).

    Args:
        network: see :func:`~hasten.eval.networks.features.load_feature_network`.
        preset: preprocessing preset.
        weights: Inception's weights file.
        allow_download: let Inception's weights be fetched.
        groups: groups of the jackknife.
        device: where to run.
    """

    def __init__(
        self,
        network: nn.Module | FeatureNetwork | str | Path = "inception",
        preset: str | None = None,
        *,
        weights: str | Path | None = None,
        allow_download: bool = False,
        groups: int = 25,
        device: torch.device | str = "cpu",
    ) -> None:
        loaded = load_feature_network(
            network, preset=preset, weights=weights, allow_download=allow_download, device=device
        )
        super().__init__(loaded, {})
        self.name = "fid" if loaded.name.startswith("inception") else "frechet_distance"
        self._groups = groups

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
        *,
        clusters: Sequence[object] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> SetFigure:
        """Raw distance with a grouped-jackknife interval, beside the noise floor at these sample sizes."""
        moments, x = self._moments(reference), features["features"]
        estimate = frechet_estimate(
            x, moments, groups=self._groups, clusters=clusters, level=level, seed=seed
        )
        return SetFigure(estimate, {"noise_floor": noise_floor(moments, len(x), moments.n)})

    def difference(
        self,
        base: Features,
        candidate: Features,
        reference: Features | Moments,
        *,
        clusters: Sequence[object] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> Estimate:
        """Paired difference with a grouped-jackknife interval; the bias of the sample size cancels."""
        return frechet_difference(
            base["features"],
            candidate["features"],
            self._moments(reference),
            groups=self._groups,
            clusters=clusters,
            level=level,
            seed=seed,
        )


class _Mmd(_FeatureMetric):
    """A squared kernel discrepancy; the unbiased statistic carries the interval unless published
    otherwise.
    """

    unbiased = True
    scale = 1.0

    def __init__(self, network: FeatureNetwork, groups: int, details: dict[str, object]) -> None:
        super().__init__(network, details)
        self._groups = groups

    def _rows(self, features: Features) -> Tensor:
        return features["features"]

    def _kernel(self, reference: Tensor) -> Kernel:
        raise NotImplementedError

    def value(self, features: Features, reference: Features) -> float:
        """The statistic, without an interval."""
        x, y = self._rows(features), self._rows(reference)
        kernel = self._kernel(y)
        sums = kernel_sums(x, None, kernel), kernel_sums(y, None, kernel), kernel_sums(x, y, kernel)
        return self.scale * discrepancy(*sums, unbiased=self.unbiased)

    def aggregate(
        self,
        features: Features,
        reference: Features,
        *,
        clusters: Sequence[object] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> SetFigure:
        """The statistic with a grouped-jackknife interval."""
        x, y = self._rows(features), self._rows(reference)
        estimate = self._run(mmd_estimate, x, y, clusters=clusters, level=level, seed=seed)
        return SetFigure(estimate)

    def difference(
        self,
        base: Features,
        candidate: Features,
        reference: Features,
        *,
        clusters: Sequence[object] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> Estimate:
        """Paired difference; the term within the reference cancels."""
        rows = self._rows(base), self._rows(candidate), self._rows(reference)
        return self._run(mmd_difference, *rows, clusters=clusters, level=level, seed=seed)

    def _run(self, estimator: Callable[..., Estimate], *rows: Tensor, **options: Any) -> Estimate:
        return estimator(
            *rows,
            self._kernel(rows[-1]),
            unbiased=self.unbiased,
            scale=self.scale,
            groups=self._groups,
            **options,
        )


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
        groups: int = 25,
        device: torch.device | str = "cpu",
    ) -> None:
        loaded = load_feature_network(
            network, preset=preset, weights=weights, allow_download=allow_download, device=device
        )
        super().__init__(loaded, groups, {"kernel": "(x.y/d + 1)^3", "statistic": "unbiased"})

    def _kernel(self, reference: Tensor) -> Kernel:  # noqa: ARG002
        return polynomial_kernel


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
    """

    scale = CMMD_SCALE

    def __init__(
        self,
        network: object = CMMD_MODEL,
        *,
        sigma: float | None = CMMD_SIGMA,
        groups: int = 25,
        device: torch.device | str = "cpu",
    ) -> None:
        from hasten.eval.networks.clip import as_clip

        if not isinstance(network, FeatureNetwork):
            clip = as_clip(network, device, geometry="square")
            if clip.geometry != "square":
                raise ConfigError(
                    "CMMD crops to the largest square before resizing; load the CLIP network with "
                    "geometry='square'."
                )
            network = clip.as_feature_network()
        self.name = "cmmd" if sigma is not None else "mmd_clip_median"
        self.unbiased = sigma is None
        self._sigma = sigma
        statistic = "unbiased" if self.unbiased else "biased"
        details: dict[str, object] = {"sigma": sigma or "median of the reference", "statistic": statistic}
        super().__init__(network, groups, details)

    def _rows(self, features: Features) -> Tensor:
        return normalized(features["features"])

    def _kernel(self, reference: Tensor) -> Kernel:
        return gaussian_kernel(self._sigma or median_bandwidth(reference))

    def aggregate(
        self,
        features: Features,
        reference: Features,
        *,
        clusters: Sequence[object] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> SetFigure:
        """The statistic with its interval; extras hold both forms and the bandwidth."""
        figure = super().aggregate(features, reference, clusters=clusters, level=level, seed=seed)
        x, y = self._rows(features), self._rows(reference)
        sigma = self._sigma or median_bandwidth(y)
        both = cmmd(x, y, sigma=sigma)
        extras = {"biased": both.biased, "sigma": sigma}
        if both.unbiased is not None:
            extras["unbiased"] = both.unbiased
        return SetFigure(figure.estimate, extras)
