"""A model of the time of a step on several processes, fitted to measured runs, and the bytes that layers exchange.

    time = compute + rounds * latency + received bytes / rate

Overlap of messages and computation is ignored, so predicted times tend to be too long. Predictions for more processes
than the fitted runs had are extrapolations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Link", "MeasuredRun", "Messages", "attention_bytes", "efficiency", "fit", "norm_bytes", "predict"]


@dataclass(frozen=True)
class Link:
    """The connection between processes.

    Args:
        latency: seconds per exchange.
        rate: bytes per second.
    """

    latency: float
    rate: float


@dataclass(frozen=True)
class Messages:
    """Messages that a rank receives over one kind of connection.

    Args:
        rounds: number of exchanges.
        received: bytes received.
        link: the connection.
    """

    rounds: int
    received: float
    link: Link

    @property
    def seconds(self) -> float:
        """Time of the messages without any overlap."""
        return self.rounds * self.link.latency + self.received / self.link.rate


@dataclass(frozen=True)
class MeasuredRun:
    """A measured run on one rank.

    Args:
        ranks: number of processes.
        seconds: wall-clock time.
        compute_seconds: wall-clock time of the same clips without messages.
        rounds: exchanges, one per layer and forward.
        received: largest number of bytes that a rank received.
    """

    ranks: int
    seconds: float
    compute_seconds: float
    rounds: int
    received: int


def fit(runs: Sequence[MeasuredRun]) -> Link:
    """The link that fits the measured runs best, by non-negative least squares.

    A single run cannot distinguish latency from rate; half of its extra time is then attributed to each.

    Raises:
        ValueError: no run has messages.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    talking = [run for run in runs if run.rounds]
    if not talking:
        raise ValueError("a link cannot be fitted to runs without messages")
    extra = np.array([max(run.seconds - run.compute_seconds, 0.0) for run in talking])
    if len(talking) == 1:
        half = float(extra[0]) / 2
        return Link(half / talking[0].rounds, talking[0].received / half if half else float("inf"))
    design = np.array([[run.rounds, run.received] for run in talking], dtype=float)
    scale = design.max(0)
    latency, inverse = nnls(design / scale, extra)[0] / scale
    return Link(float(latency), 1.0 / float(inverse) if inverse > 0 else float("inf"))


def efficiency(compute_seconds: float, parts: Sequence[Messages]) -> float:
    """Share of computation in the total time of a rank with these messages."""
    return compute_seconds / (compute_seconds + sum(part.seconds for part in parts))


def predict(run: MeasuredRun, ranks: int, link: Link) -> float:
    """Predicted efficiency, computation over total time, of ``ranks`` processes with as many frames each as in ``run``.

    Inner ranks receive from two neighbours, so the bytes of a run with two ranks are doubled for more than two.
    """
    received = run.received * (2 if ranks > 2 and run.ranks == 2 else 1)
    return efficiency(run.compute_seconds, [Messages(run.rounds, received, link)])


def attention_bytes(
    frame: int, halo: int, shares: Sequence[int], neighbours: int, *, keys_and_values: bool = False
) -> int:
    """Bytes that one rank receives in one attention layer of mode ``dual``.

    Args:
        frame: bytes of one frame of the layer's input (batch x tokens per frame x channels x bytes per number).
        halo: frames of context per side.
        shares: global frames that each rank holds; messages have the size of the largest.
        neighbours: 1 at the ends of the video, else 2.
        keys_and_values: keys and values are exchanged instead of inputs.
    """
    each = frame * (2 if keys_and_values else 1)
    return each * (halo * neighbours + max(shares) * (len(shares) - 1))


def norm_bytes(batch: int, groups: int, ranks: int, clips_per_rank: int = 1) -> int:
    """Bytes that one rank receives in one group norm: count, mean and deviation in single precision."""
    return batch * groups * 3 * 4 * clips_per_rank * (ranks - 1)
