"""Base classes of metrics: a ``torchmetrics.Metric`` that embeds batches, and scores or aggregates the embeddings.

Embedding needs the network and the images. Its result has one row per sample, can be stored, and is the only input
of the later steps: a baseline is embedded once for any number of candidates. ``update``, ``compute`` and ``reset`` do
the same for training loops; states are synchronised over processes, also uneven ones and those without a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Unpack, runtime_checkable

import torch
import torchmetrics
from torch import Tensor

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.pictures.images import check_images, check_pair
from hasten.eval.statistics import Estimate, Grouping
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
                f"{len(self.images)} images cannot be divided into videos of {self.frames} frames"
            )
        if self.prompts is not None and len(self.prompts) != len(self.images):
            raise ConfigError(f"there are {len(self.prompts)} prompts for {len(self.images)} images")
        if self.baseline is not None:
            check_pair(self.baseline, self.images)


@runtime_checkable
class Placed(Protocol):
    """A network that moves to another device with its metric."""

    def to(self, device: torch.device) -> object:
        """Move there."""


class Metric(torchmetrics.Metric):
    """Base of all metrics. Values are comparable only if :meth:`fingerprint` is equal.

    Class attributes: ``name`` (on the command line), ``needs``, ``higher_is_better``, ``unit`` (empty for
    none), ``published`` (whether its values are comparable with published ones), ``tolerance`` (largest loss
    that fewer plain steps may have unless the user sets a margin; ``None`` if the user has to set it), ``perfect``
    (of metrics that compare with the baseline's picture: the score of the same picture, from which a loss is
    counted; ``None`` if there is no largest score).

    A subclass with a constructor of its own sets ``name`` and then calls ``super().__init__()``. Networks that have a
    method ``to`` follow the metric to another device.
    """

    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    higher_is_better: bool

    name: str
    version: ClassVar[str] = "1"
    needs: frozenset[Need]
    unit: str = ""
    published: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = None
    perfect: ClassVar[float | None] = None

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValueError as error:  # what torchmetrics raises for a keyword that nobody takes
            raise TypeError(str(error)) from error

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Everything that affects the value."""

    @abstractmethod
    def embed(self, batch: Batch) -> Features:
        """Embeddings of these samples, one row per sample.

        Raises:
            ConfigError: if the batch lacks what :attr:`needs` names.
        """

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Gather the states of all processes; see ``torchmetrics.Metric.sync``."""
        for name in self._defaults:
            rows = getattr(self, name)
            if isinstance(rows, list) and not rows:
                # A process without samples takes part with no rows of the same width.
                rows.append(torch.empty(0, self._width(), dtype=self._rows_dtype, device=self.device))
        super().sync(*arguments, **options)

    _rows_dtype = torch.float64

    @abstractmethod
    def _width(self) -> int:
        """Columns of the states that hold rows."""

    def _rows(self, name: str) -> Tensor:
        """All rows of a state, which is one tensor after synchronisation."""
        state = getattr(self, name)
        rows = state if isinstance(state, Tensor) else torch.cat(state) if state else torch.empty(0, 0)
        if not len(rows):
            raise ConfigError(f"the metric {self.name} has no samples yet")
        return rows

    def _apply(self, *arguments: Any, **options: Any) -> torch.nn.Module:
        before = self.device
        moved: torch.nn.Module = super()._apply(*arguments, **options)
        if self.device != before:
            for part in vars(self).values():
                if isinstance(part, Placed) and not isinstance(part, Tensor | torch.nn.Module):
                    part.to(self.device)
        return moved

    def _require(self, batch: Batch) -> None:
        for need, value in (("prompt", batch.prompts), ("baseline", batch.baseline)):
            if need in self.needs and value is None:
                plural = "prompts" if need == "prompt" else "the baseline's images"
                raise ConfigError(f"the metric {self.name} needs {plural} beside the images")
        if "video" in self.needs and batch.frames < 2:
            raise ConfigError(f"the metric {self.name} needs videos, and these are single pictures")


class SampleMetric(Metric):
    """A metric with one score per sample; its value is their mean, and paired statistics apply.

    Args:
        variant: which of several definitions.
        options: of ``torchmetrics.Metric``.
    """

    def __init__(self, variant: str = "", **options: Any) -> None:
        super().__init__(**options)
        # Named after the metric: in a MetricCollection metrics whose states look alike would share them.
        self._state = f"samples_of_{self.name}_{variant}"
        self.add_state(self._state, [], dist_reduce_fx="cat")

    def update(
        self,
        images: Tensor,
        prompts: Sequence[str] | None = None,
        baseline: Tensor | None = None,
        frames: int = 1,
    ) -> None:
        """Score uint8 images ``[N, 3, H, W]`` with the other inputs of the metric; see :class:`Batch`.

        Raises:
            ConfigError: if they don't belong together or something is missing.
        """
        batch = Batch(images, None if prompts is None else tuple(prompts), baseline, frames)
        features = self.embed(batch)
        counts = self.counts(features)
        if counts is None:
            scores = self.averaged(self.score(features))
            counts = scores, torch.ones_like(scores)
        rows = torch.stack(counts, 1).to(device=self.device, dtype=torch.float64)
        getattr(self, self._state).append(rows)

    def compute(self) -> Tensor:
        """The metric's figure over all samples, a float64 scalar.

        Raises:
            ConfigError: before the first update.
        """
        right, asked = self._rows(self._state).unbind(1)
        figure = self.summarize(right) if bool((asked == 1).all()) else float(right.sum() / asked.sum())
        return torch.tensor(figure, dtype=torch.float64, device=self.device)

    def _width(self) -> int:
        return 2

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
    """Value of a set metric.

    Attributes:
        estimate: value and interval.
        extras: named companions: bias-free or biased forms, the noise floor, parts of the sum.
    """

    estimate: Estimate
    extras: Mapping[str, float] = field(default_factory=dict)


class SetMetric(Metric):
    """A metric of a set against a reference set. Clusters are prompts, in the order of the rows.

    As a ``torchmetrics.Metric`` it keeps the features of both sets.

    Args:
        reset_real_features: whether :meth:`reset` forgets the reference.
        options: of ``torchmetrics.Metric``.
    """

    real: list[Tensor] | Tensor
    fake: list[Tensor] | Tensor
    _rows_dtype = torch.float32

    def __init__(self, *, reset_real_features: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self._reset_real = reset_real_features
        self._add_sides()

    def _add_sides(self) -> None:
        for side in ("real", "fake"):
            self.add_state(side, [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Add uint8 images ``[N, 3, H, W]`` to the reference (``real``) or the generated set.

        Raises:
            ConfigError: if they are no such images, or the metric embeds anything but ``"features"``.
        """
        embedded = self.embed(Batch(images))
        if set(embedded) != {"features"}:
            raise ConfigError(
                f"the metric {self.name} embeds {sorted(embedded)}; only 'features' can be kept here"
            )
        self._add("real" if real else "fake", embedded["features"].to(self.device))

    def _add(self, side: str, features: Tensor) -> None:
        getattr(self, side).append(features)

    def compute(self) -> Tensor:
        """The metric's figure, a float64 scalar.

        Raises:
            ConfigError: with too few images on a side.
        """
        fake, real = ({"features": self._rows(side)} for side in ("fake", "real"))
        return torch.tensor(self.value(fake, real), dtype=torch.float64, device=self.device)

    def reset(self) -> None:
        """Forget the images; the reference only if so configured."""
        # torchmetrics empties the list itself.
        real = self.real if isinstance(self.real, Tensor) else list(self.real)
        super().reset()
        if not self._reset_real:
            self.real = real

    def _width(self) -> int:
        return self.embed(Batch(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)))["features"].shape[1]

    def own_reference(self, prompts: Sequence[str], side: int) -> Iterator[Tensor] | None:  # noqa: ARG002
        """Batches uint8 ``[M, 3, side, side]`` that the metric compares with by itself; None where it has none.

        Args:
            prompts: of the pictures that are scored.
            side: of these pictures, in pixels.
        """
        return None

    @abstractmethod
    def value(self, features: Features, reference: Any) -> float:
        """The figure alone, without an interval."""

    @abstractmethod
    def aggregate(self, features: Features, reference: Any, **grouping: Unpack[Grouping]) -> SetFigure:
        """The figure with its interval.

        Args:
            features: embedded samples.
            reference: embedded reference samples, or what else the metric documents.
            grouping: ``clusters``, ``level``, ``seed``: see :class:`~hasten.eval.statistics.Grouping`.
        """

    @abstractmethod
    def difference(
        self, base: Features, candidate: Features, reference: Any, **grouping: Unpack[Grouping]
    ) -> Estimate:
        """Candidate minus baseline over pairs (rows correspond), with the paired interval."""


def concatenate(parts: Sequence[Features]) -> dict[str, Tensor]:
    """Embeddings of consecutive batches as one.

    Raises:
        ConfigError: without a part.
    """
    if not parts:
        raise ConfigError("there are no embeddings to concatenate")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
