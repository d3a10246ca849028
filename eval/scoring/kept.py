"""What is kept of scored pictures, so that memory does not grow with their number."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.eval.distributed import collect_rows, gather_moments
from hasten.eval.functional.moments import Moments
from hasten.eval.metric import Batch, Features, Metric, SampleMetric, SetMetric
from hasten.eval.metrics.sets import Fid
from hasten.extend import ConfigError, gather

__all__ = ["KeptFeatures", "KeptMoments", "KeptScores", "Rows", "keep", "keep_reference"]

FloatArray = NDArray[np.float64]


class Rows:
    """A matrix that grows in a temporary file; only what is read of it takes memory."""

    def __init__(self) -> None:
        # Open for as long as the rows are mapped.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._count, self._width, self._dtype = 0, 0, np.dtype(np.float32)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Tensor) -> None:
        """Add ``[N, ...]``, as ``[N, d]``; ``d`` and dtype as before."""
        array = rows.detach().reshape(len(rows), -1).cpu().contiguous().numpy()
        self._file.write(array.tobytes())
        self._count += len(array)
        self._width, self._dtype = array.shape[1], array.dtype

    def tensor(self) -> Tensor:
        """All rows ``[N, d]``, mapped."""
        if not self._count:
            return torch.empty(0, self._width)
        self._file.flush()
        shape = (self._count, self._width)
        return torch.from_numpy(np.memmap(self._file, self._dtype, mode="r+", shape=shape))

    def collect(self) -> None:
        """Append the rows of the other processes, on the first one."""
        collect_rows(self.tensor(), self.append)


class KeptScores:
    """Three numbers of each picture: its score, right answers and questions."""

    def __init__(self, metric: SampleMetric) -> None:
        self.metric = metric
        self._rows, self._counted = Rows(), False

    def add(self, batch: Batch) -> None:
        """Score a batch."""
        features = self.metric.embed(batch)
        scores = self.metric.averaged(self.metric.score(features)).to(torch.float64)
        counts = self.metric.counts(features)
        right, asked = counts if counts is not None else (scores, torch.full_like(scores, torch.nan))
        self._rows.append(torch.stack([scores, right, asked], 1))

    def collect(self) -> None:
        """Take over what the other processes have, on the first one."""
        self._rows.collect()

    @property
    def values(self) -> FloatArray:
        """Score of every sample, as it enters a mean: ``[N]``."""
        column: FloatArray = self._rows.tensor()[:, 0].numpy()
        return column

    @property
    def counts(self) -> tuple[FloatArray, FloatArray] | None:
        """Right answers and questions of every sample, where the figure is the ratio of their sums."""
        _, right, asked = self._rows.tensor().unbind(1)
        return None if bool(asked.isnan().any()) else (right.numpy(), asked.numpy())


class KeptFeatures:
    """The embeddings of a metric of sets, on disk."""

    def __init__(self, metric: SetMetric) -> None:
        self.metric = metric
        self._rows: dict[str, Rows] = {}

    def add(self, batch: Batch) -> None:
        """Embed a batch."""
        for name, rows in self.metric.embed(batch).items():
            self._rows.setdefault(name, Rows()).append(rows)

    def collect(self) -> None:
        """Take over what the other processes have, on the first one."""
        if not self._rows:
            # A process without pictures takes part; every metric of sets embeds under this name.
            self._rows["features"] = Rows()
        for rows in self._rows.values():
            rows.collect()

    @property
    def kept(self) -> Features:
        """The embeddings, mapped."""
        return {name: rows.tensor() for name, rows in self._rows.items()}


class KeptMoments:
    """Mean and covariance of a Frechet distance's features; the same size whatever the number of pictures."""

    def __init__(self, metric: Fid) -> None:
        self.metric = metric
        self._moments = Moments.empty(metric.network.dimension)
        self._waiting: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Embed a batch."""
        self._waiting.append(self.metric.embed(batch)["features"])
        # An update of d x d numbers pays off once there are d rows for it.
        if sum(map(len, self._waiting)) >= self._moments.dimension:
            self._fold()

    def _fold(self) -> None:
        if sum(map(len, self._waiting)):
            self._moments = self._moments.merge(Moments.of(torch.cat(self._waiting)))
        self._waiting = []

    def collect(self) -> None:
        """Take over what the other processes have, on the first one.

        A set of few pictures is put together before its moments are computed: where there are fewer pictures than
        dimensions, rounding in another order shows in the eighth digit of the distance.
        """
        if any(gather(self._moments.n)):
            self._fold()
            self._moments = gather_moments(self._moments)
            return
        own = torch.cat(self._waiting) if self._waiting else torch.empty(0, self._moments.dimension)
        self._waiting = [own]
        collect_rows(own, self._waiting.append)

    @property
    def kept(self) -> Moments:
        """The moments of all pictures so far."""
        self._fold()
        return self._moments


def keep(metric: Metric) -> KeptScores | KeptFeatures:
    """What is kept of the pictures that ``metric`` scores.

    Raises:
        ConfigError: if it is neither a metric of samples nor of sets.
    """
    if isinstance(metric, SampleMetric):
        return KeptScores(metric)
    if isinstance(metric, SetMetric):
        return KeptFeatures(metric)
    raise ConfigError(f"metric {metric.name} is neither a SampleMetric nor a SetMetric")


def keep_reference(metric: SetMetric) -> KeptFeatures | KeptMoments:
    """What is kept of the pictures that ``metric`` compares with."""
    return KeptMoments(metric) if isinstance(metric, Fid) else KeptFeatures(metric)
