"""Which keys a group of heads keeps. One small interface, one class for each way of choosing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.plugins.hack.config import HackConfig
from hasten.plugins.hack.math import evenly_spaced, pick, subset_attention
from hasten.plugins.hack.plan import CachePlan, HeadGroup

__all__ = ["Candidates", "Selector", "make_selector"]


@dataclass
class Candidates:
    """Keys a group of heads can choose from: those kept so far, oldest first, then those of the current scale.

    Args:
        layer: index of the layer.
        scale: index of the current scale.
        query: (N, heads, n, dim) of the current scale.
        keys: (N, heads, T, dim).
        values: (N, heads, T, dim).
        source: scale each key came from, int8 (N, heads, T).
        mass: attention gathered over earlier scales, float32 (N, heads, T), for ``h2o``.
    """

    layer: int
    scale: int
    query: Tensor
    keys: Tensor
    values: Tensor
    source: Tensor
    mass: Tensor | None = None

    @property
    def current(self) -> int:
        """Number of keys of the current scale."""
        return self.query.shape[2]


class Selector(Protocol):
    """Chooses keys."""

    def scores(self, candidates: Candidates, group: HeadGroup) -> Tensor | None:
        """Importance (N, heads, T) of every key, float32; ``None`` where :meth:`choose` needs none."""

    def choose(self, candidates: Candidates, group: HeadGroup, scores: Tensor | None, count: int) -> Tensor:
        """Indices (N, heads, count) of the keys to keep; ``count`` is less than their number."""


@dataclass(frozen=True)
class HeadAware:
    """HACK: contextual heads keep the keys of the most attention, structural heads the first scales and the current
    one.

    Args:
        config: options of the technique.
    """

    config: HackConfig

    def scores(self, candidates: Candidates, group: HeadGroup) -> Tensor | None:  # noqa: ARG002
        """Attention summed over evenly spaced queries of the current scale."""
        rows = evenly_spaced(candidates.current, self.config.queries, candidates.query.device)
        return subset_attention(candidates.query, candidates.keys, rows).sum(2)

    def choose(self, candidates: Candidates, group: HeadGroup, scores: Tensor | None, count: int) -> Tensor:
        """By score, after what is protected."""
        assert scores is not None
        if group.kind == "structural":
            scores = self._protected(candidates, scores, count)
        return pick(scores, count, self.config.deterministic)

    def _protected(self, candidates: Candidates, scores: Tensor, count: int) -> Tensor:
        """Scores under which the first scales and the current one win. Of a current scale that does not fit, half or
        as much as fits is safe, evenly spaced, so that the grid stays covered; the rest competes.
        """
        initial = candidates.source < self.config.initial_scales
        current = candidates.current
        room = count - int(initial[0, 0].sum())
        safe = current if current <= room else min((current + 1) // 2, max(0, room))
        rows = scores.shape[-1] - current + evenly_spaced(current, safe, scores.device)
        # Scores are sums of probabilities: at most as many as there are queries.
        above = 2.0 * self.config.queries
        protected = torch.zeros_like(scores).index_fill(2, rows, above)
        return scores + protected + 2 * above * initial.float()


@dataclass(frozen=True)
class HeadAwarePlus(HeadAware):
    """HACK++ (arXiv 2606.08302): contextual scores are pooled over neighbours, structural ones come from the
    calibration and the length of the values, without any product of queries and keys.

    Args:
        config: options of the technique.
        prior: mean attention (layers, heads, scales, scales) of a scale to one token of another.
    """

    prior: Tensor
    kernel: int = 5

    def scores(self, candidates: Candidates, group: HeadGroup) -> Tensor | None:
        """See the class."""
        if group.kind == "contextual":
            found = super().scores(candidates, group)
            assert found is not None
            return F.max_pool1d(found, self.kernel, stride=1, padding=self.kernel // 2)
        table = self.prior[candidates.layer, list(group.heads), candidates.scale].to(candidates.keys.device)
        weights = table.expand(len(candidates.source), -1, -1).gather(2, candidates.source.long())
        lengths: Tensor = candidates.values.float().norm(dim=-1)
        return weights * lengths

    def choose(
        self,
        candidates: Candidates,  # noqa: ARG002
        group: HeadGroup,  # noqa: ARG002
        scores: Tensor | None,
        count: int,
    ) -> Tensor:
        """The largest scores; no slot is protected by its place."""
        assert scores is not None
        return pick(scores, count, self.config.deterministic)


@dataclass(frozen=True)
class Streaming:
    """The first keys and the latest ones (StreamingLLM, arXiv 2309.17453)."""

    sinks: int = 4

    def scores(self, candidates: Candidates, group: HeadGroup) -> Tensor | None:  # noqa: ARG002
        """None: places decide."""
        return None

    def choose(
        self,
        candidates: Candidates,
        group: HeadGroup,  # noqa: ARG002
        scores: Tensor | None,  # noqa: ARG002
        count: int,
    ) -> Tensor:
        """In order of time."""
        shape, device = candidates.source.shape, candidates.source.device
        sinks = min(self.sinks, count // 2)
        rows = [torch.arange(sinks), torch.arange(shape[2] - count + sinks, shape[2])]
        return torch.cat(rows).to(device).expand(shape[0], shape[1], -1)


@dataclass(frozen=True)
class SnapKV:
    """The last queries vote for keys, votes are pooled over neighbours, their own keys stay (arXiv 2404.14469)."""

    window: int = 32
    kernel: int = 5

    def scores(self, candidates: Candidates, group: HeadGroup) -> Tensor | None:  # noqa: ARG002
        """Mean attention of the window, pooled."""
        window = min(self.window, candidates.current)
        rows = torch.arange(candidates.current - window, candidates.current, device=candidates.query.device)
        mean = subset_attention(candidates.query, candidates.keys, rows).mean(2)
        return F.max_pool1d(mean, self.kernel, stride=1, padding=self.kernel // 2)

    def choose(
        self,
        candidates: Candidates,
        group: HeadGroup,  # noqa: ARG002
        scores: Tensor | None,
        count: int,
    ) -> Tensor:
        """The window, then the best of the rest."""
        assert scores is not None
        window = min(self.window, candidates.current, count)
        boost = torch.zeros_like(scores)
        boost[..., scores.shape[-1] - window :] = 2.0
        return pick(scores + boost, count, False)


@dataclass(frozen=True)
class HeavyHitters:
    """Half of the latest keys, half those of the most attention so far (H2O, arXiv 2306.14048)."""

    queries: int = 32

    def scores(self, candidates: Candidates, group: HeadGroup) -> Tensor | None:  # noqa: ARG002
        """Attention of all scales so far; this scale's is estimated from evenly spaced queries."""
        rows = evenly_spaced(candidates.current, self.queries, candidates.query.device)
        now = subset_attention(candidates.query, candidates.keys, rows).mean(2) * candidates.current
        return now if candidates.mass is None else now + candidates.mass

    def choose(
        self,
        candidates: Candidates,  # noqa: ARG002
        group: HeadGroup,  # noqa: ARG002
        scores: Tensor | None,
        count: int,
    ) -> Tensor:
        """The latest half in any case."""
        assert scores is not None
        boosted = scores.clone()
        boosted[..., scores.shape[-1] - count // 2 :] += 1e9
        return pick(boosted, count, False)


def make_selector(config: HackConfig, plan: CachePlan) -> Selector | None:
    """The selector of a policy; ``None`` for those that keep whole scales."""
    if config.policy == "hack_plus":
        assert plan.prior is not None
        return HeadAwarePlus(config, plan.prior)
    simple: dict[str, Callable[[], Selector]] = {
        "streaming": Streaming,
        "snapkv": SnapKV,
        "h2o": HeavyHitters,
    }
    if config.policy in simple:
        return simple[config.policy]()
    return HeadAware(config) if config.policy == "hack" else None
