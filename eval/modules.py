"""The metrics as ``torchmetrics.Metric``: update, compute, reset, and synchronisation over processes.

States are float64 and survive uneven shards and ranks without a sample. The figures are those of the
functional core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric as TorchMetric

from hasten.eval.functional.frechet import frechet_distance
from hasten.eval.functional.moments import Moments, merge_all
from hasten.eval.metric import Batch, Metric, SampleMetric, SetMetric
from hasten.eval.networks.features import FeatureNetwork, load_feature_network
from hasten.extend import ConfigError


def _merge_packed(stacked: Tensor) -> Tensor:
    """``[ranks, d + 2, d]`` packed moments to one, in rank order."""
    return merge_all(Moments.unpack(packed) for packed in stacked).pack()


class FrechetDistance(TorchMetric):
    """Frechet distance with a state of fixed size, ``(d + 2) x d`` float64 a side, whatever the number of
    images.

    Args:
        network: see :func:`~hasten.eval.networks.features.load_feature_network`; a plain module gets uint8
            images, as with torchmetrics' own class.
        preset: preprocessing preset.
        reset_real_features: whether :meth:`reset` forgets the reference.
        options: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    real: Tensor
    fake: Tensor

    def __init__(
        self,
        network: nn.Module | FeatureNetwork | str = "inception",
        preset: str | None = None,
        *,
        reset_real_features: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        # Kept out of the module tree: the network places and evaluates itself.
        object.__setattr__(self, "network", load_feature_network(network, preset=preset))
        self._reset_real = reset_real_features
        empty = Moments.empty(self._features.dimension).pack()
        self.add_state("real", empty.clone(), dist_reduce_fx=_merge_packed)
        self.add_state("fake", empty.clone(), dist_reduce_fx=_merge_packed)

    @property
    def _features(self) -> FeatureNetwork:
        network = self.__dict__["network"]
        assert isinstance(network, FeatureNetwork)
        return network

    def update(self, images: Tensor, real: bool) -> None:
        """Add uint8 images ``[N, 3, H, W]`` to the reference (``real``) or the generated set."""
        side = "real" if real else "fake"
        state: Tensor = getattr(self, side)
        added = Moments.of(self._features(images).to(state.device))
        setattr(self, side, Moments.unpack(state).merge(added).pack())

    def compute(self) -> Tensor:
        """The distance, a float64 scalar.

        Raises:
            ConfigError: with fewer than two images on a side.
        """
        distance = frechet_distance(Moments.unpack(self.fake), Moments.unpack(self.real))
        return torch.tensor(distance.value, dtype=torch.float64)

    def reset(self) -> None:
        """Forget the images; the reference only if so configured."""
        real = self.real
        super().reset()
        if not self._reset_real:
            self.real = real


class _Rows(TorchMetric):
    """Keeps rows in list states that begin with an empty block, so that a rank without samples can take
    part.
    """

    is_differentiable = False
    full_state_update = False

    metric: Metric

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Direction of the wrapped metric."""
        return self.metric.higher_is_better

    def _add_rows(self, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._shapes = shapes
        for name in shapes:
            self.add_state(name, [], dist_reduce_fx="cat")
        self._begin()

    def _begin(self) -> None:
        for name, (shape, dtype) in self._shapes.items():
            rows: list[Tensor] = getattr(self, name)
            rows.append(torch.empty(0, *shape, dtype=dtype, device=self.device))

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._begin()

    def _rows(self, name: str) -> Tensor:
        state = getattr(self, name)
        return state if isinstance(state, Tensor) else torch.cat(state)


class SampleScore(_Rows):
    """Any per-sample metric of hasten; :meth:`compute` returns its figure over all samples.

    Args:
        metric: such as :class:`hasten.eval.metrics.alignment.ClipScore`.
        options: of ``torchmetrics.Metric``.
    """

    metric: SampleMetric
    scores: list[Tensor]

    def __init__(self, metric: SampleMetric, **options: Any) -> None:
        super().__init__(**options)
        self.metric = metric
        self._add_rows({"scores": ((), torch.float64)})

    def update(
        self, images: Tensor, prompts: Sequence[str] | None = None, baseline: Tensor | None = None
    ) -> None:
        """Score uint8 images ``[N, 3, H, W]`` with what the metric needs beside them."""
        batch = Batch(images, None if prompts is None else tuple(prompts), baseline)
        scores = self.metric.score(self.metric.embed(batch))
        self.scores.append(scores.to(device=self.device, dtype=torch.float64))

    def compute(self) -> Tensor:
        """The metric's summary of all scores, a float64 scalar.

        Raises:
            ConfigError: before the first update.
        """
        scores = self._rows("scores")
        if len(scores) == 0:
            raise ConfigError(f"The metric {self.metric.name} has seen no sample.")
        return torch.tensor(self.metric.summarize(scores), dtype=torch.float64)


class SetScore(_Rows):
    """Any set metric of hasten on a feature network (KID, CMMD, Frechet distance), keeping the features.

    Args:
        metric: such as :class:`hasten.eval.metrics.sets.Kid`.
        options: of ``torchmetrics.Metric``.
    """

    metric: SetMetric
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, metric: SetMetric, **options: Any) -> None:
        super().__init__(**options)
        self.metric = metric
        probe = metric.embed(Batch(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)))
        if set(probe) != {"features"}:
            raise ConfigError(
                f"The metric {metric.name} embeds {sorted(probe)}; SetScore keeps only 'features'."
            )
        shape = tuple(probe["features"].shape[1:]), probe["features"].dtype
        self._add_rows({"real": shape, "fake": shape})

    def update(self, images: Tensor, real: bool) -> None:
        """Add uint8 images ``[N, 3, H, W]`` to the reference (``real``) or the generated set."""
        features = self.metric.embed(Batch(images))["features"].to(self.device)
        (self.real if real else self.fake).append(features)

    def compute(self) -> Tensor:
        """The metric's figure, a float64 scalar."""
        sides = ({"features": self._rows(name)} for name in ("fake", "real"))
        return torch.tensor(self.metric.value(*sides), dtype=torch.float64)
