"""A model of a step's time on several processes, fitted to measured runs, and the bytes that layers exchange.

    time = compute + rounds * latency + received bytes / rate

What overlaps with computation is not taken off, so predictions err on the slow side. They are predictions: nothing here
was measured on more than what it was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Link", "Part", "Run", "attention_bytes", "efficiency", "fit", "norm_bytes", "predict"]


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
class Part:
    """Messages that a rank receives over one kind of connection.

    Args:
        rounds: exchanges.
        received: bytes.
        link: the connection.
    """

    rounds: int
    received: float
    link: Link

    @property
    def seconds(self) -> float:
        """What they take, if nothing else happens meanwhile."""
        return self.rounds * self.link.latency + self.received / self.link.rate


@dataclass(frozen=True)
class Run:
    """A measured run on one rank.

    Args:
        ranks: number of processes.
        seconds: wall-clock time.
        compute_seconds: time of the same clips without any message.
        rounds: exchanges, one per layer and forward.
        received: bytes received by the rank that received most.
    """

    ranks: int
    seconds: float
    compute_seconds: float
    rounds: int
    received: int


def fit(runs: Sequence[Run]) -> Link:
    """The link that explains the measured runs best, in the sense of non-negative least squares.

    A single run cannot tell latency from rate; its extra time is then divided between both in equal parts.

    Raises:
        ValueError: there is no run with messages.
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


def efficiency(compute_seconds: float, parts: Sequence[Part]) -> float:
    """Computation over total time of a rank with these messages."""
    return compute_seconds / (compute_seconds + sum(part.seconds for part in parts))


def predict(run: Run, ranks: int, link: Link) -> float:
    """Predicted efficiency of ``ranks`` processes with as many frames each as in ``run``: compute over total time.

    An inner rank receives from two neighbours, so that from three ranks on the bytes of ``run`` with two may double.
    """
    received = run.received * (2 if ranks > 2 and run.ranks == 2 else 1)
    return efficiency(run.compute_seconds, [Part(run.rounds, received, link)])


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
