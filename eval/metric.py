"""What a metric is: it embeds batches, once, and scores or aggregates the embeddings, as often as wanted.

Embedding needs the network and the images; what it returns has one row per sample, can be kept, and suffices
for everything after it. A baseline is embedded once for any number of candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.pictures.images import check_images, check_pair
from hasten.eval.statistics import Estimate
from hasten.extend import ConfigError

#: One tensor per name, one row per sample; on the CPU.
Features = Mapping[str, Tensor]

Need = Literal["image", "prompt", "baseline", "reference", "video"]


@dataclass(frozen=True)
class Batch:
    """Samples of one image size. Videos are rows of frames: ``frames`` consecutive images are one sample.

    Attributes:
        images: uint8 ``[N, 3, H, W]``.
        prompts: one per image, where the metric needs them.
        baseline: the unaccelerated images of the same prompts and seeds, same shape, where it needs them.

    Raises:
        ConfigError: if they don't belong together.
    """

    images: Tensor
    prompts: tuple[str, ...] | None = None
    baseline: Tensor | None = None
    frames: int = 1

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.frames < 1 or len(self.images) % self.frames:
            raise ConfigError(
                f"{len(self.images)} images are no whole number of videos of {self.frames} frames."
            )
        if self.prompts is not None and len(self.prompts) != len(self.images):
            raise ConfigError(f"There are {len(self.prompts)} prompts for {len(self.images)} images.")
        if self.baseline is not None:
            check_pair(self.baseline, self.images)


class Metric(ABC):
    """Base of all metrics. Figures are comparable only where :meth:`fingerprint` is equal.

    Class attributes: ``name`` (what a user types), ``needs``, ``higher_is_better``, ``unit`` (empty for
    none), ``published`` (whether its figures may be compared with published ones), ``tolerance`` (largest loss
    that fewer plain steps may have unless the user sets a margin; ``None`` where only the user can say).
    """

    name: str
    version: ClassVar[str] = "1"
    needs: frozenset[Need]
    higher_is_better: bool
    unit: str = ""
    published: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = None

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Everything that moves the figure."""

    @abstractmethod
    def embed(self, batch: Batch) -> Features:
        """What later steps need of these samples, one row per sample.

        Raises:
            ConfigError: if the batch lacks what :attr:`needs` names.
        """

    def _require(self, batch: Batch) -> None:
        for need, value in (("prompt", batch.prompts), ("baseline", batch.baseline)):
            if need in self.needs and value is None:
                plural = "prompts" if need == "prompt" else "the baseline's images"
                raise ConfigError(f"The metric {self.name} needs {plural} beside the images.")
        if "video" in self.needs and batch.frames < 2:
            raise ConfigError(f"The metric {self.name} is one of videos, and these are single pictures.")


class SampleMetric(Metric):
    """A metric with one score per sample; its figure is their mean, and paired statistics apply."""

    @abstractmethod
    def score(self, features: Features) -> Tensor:
        """Scores of embedded samples: float64 ``[N]``, raw (a PSNR may be infinite).

        One score per image, or (metrics that need videos) one per video.
        """

    def summarize(self, scores: Tensor) -> float:
        """The figure of a set of scores; their mean unless the metric's definition says otherwise."""
        return float(self.averaged(scores).mean())

    def averaged(self, scores: Tensor) -> Tensor:
        """The scores as they enter means and paired differences: finite."""
        return scores

    def counts(self, features: Features) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Right answers and questions asked, float64 ``[N]`` each, where the figure is the ratio of their sums."""
        return None


@dataclass(frozen=True)
class SetFigure:
    """A figure of a whole set.

    Attributes:
        estimate: value and interval.
        extras: named companions: bias-free or biased forms, the noise floor, parts of the sum.
    """

    estimate: Estimate
    extras: Mapping[str, float] = field(default_factory=dict)


class SetMetric(Metric):
    """A metric of a set against a reference set. Clusters are prompts, in the order of the rows."""

    def own_reference(self, prompts: Sequence[str], side: int) -> Tensor | None:  # noqa: ARG002
        """Pictures that the metric compares with by itself: uint8 ``[M, 3, side, side]``; None where it has none.

        Args:
            prompts: of the pictures that are scored.
            side: of these pictures, in pixels.
        """
        return None

    @abstractmethod
    def value(self, features: Features, reference: Any) -> float:
        """The figure alone, without an interval."""

    @abstractmethod
    def aggregate(
        self,
        features: Features,
        reference: Any,
        *,
        clusters: Sequence[object] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> SetFigure:
        """The figure with its interval.

        Args:
            features: embedded samples.
            reference: embedded reference samples, or what else the metric documents.
            clusters: one label per row (the prompt).
            level: coverage.
            seed: of random groups.
        """

    @abstractmethod
    def difference(
        self,
        base: Features,
        candidate: Features,
        reference: Any,
        *,
        clusters: Sequence[object] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> Estimate:
        """Candidate minus baseline over pairs (rows correspond), with the paired interval."""


def concatenate(parts: Sequence[Features]) -> dict[str, Tensor]:
    """Embeddings of consecutive batches as one.

    Raises:
        ConfigError: without a part.
    """
    if not parts:
        raise ConfigError("There are no embeddings to put together.")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
