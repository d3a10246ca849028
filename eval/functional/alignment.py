"""Text-image alignment from embeddings: cosines, and the scales on which papers print them.

What is stored is always the raw cosine of each sample; scaling and clamping are presentation.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from hasten.eval.functional.mmd import normalized
from hasten.extend import ConfigError

#: ``cosine``: mean cosine. ``percent``: 100 times that. ``torchmetrics``: the same, the *mean* clamped at 0.
#: ``clamped``: each sample clamped at 0 (DeepCache, BK-SDM). ``original``: 2.5 max(cos, 0) (Hessel et al.
#: 2021, whose texts begin with "A photo depicts").
ClipScale = Literal["cosine", "percent", "torchmetrics", "clamped", "original"]

_FACTOR = {"cosine": 1.0, "percent": 100.0, "torchmetrics": 100.0, "clamped": 100.0, "original": 2.5}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of corresponding rows of ``[N, d]`` and ``[N, d]``, in float64.

    Raises:
        ConfigError: on differing shapes, zero rows or non-finite values.
    """
    if a.shape != b.shape:
        raise ConfigError(
            f"embeddings to compare row by row have the shapes {list(a.shape)} and {list(b.shape)}"
        )
    return (normalized(a) * normalized(b)).sum(1)


def scale_cosines(cosines: Tensor, scale: ClipScale = "percent") -> Tensor:
    """Per-sample scores on a published scale. ``torchmetrics`` clamps only the mean, so nothing is clamped
    here.

    Args:
        cosines: ``[N]``.
        scale: see :data:`ClipScale`.

    Raises:
        ConfigError: on an unknown scale.
    """
    if scale not in _FACTOR:
        raise ConfigError(f"CLIP score scales are {', '.join(get_args(ClipScale))}, not {scale!r}")
    scores = cosines.to(torch.float64) * _FACTOR[scale]
    return scores.clamp(min=0) if scale in ("clamped", "original") else scores


def mean_score(scores: Tensor, scale: ClipScale) -> float:
    """The figure a paper prints of scaled scores: their mean; on the ``torchmetrics`` scale clamped at 0."""
    mean = float(scores.mean())
    return max(0.0, mean) if scale == "torchmetrics" else mean


def max_query_cosine(queries: Tensor, text: Tensor) -> Tensor:
    """BLIP-2's image-text contrastive score of each pair: the best of the image's queries against the text.

    Args:
        queries: ``[N, Q, d]`` image query embeddings.
        text: ``[N, d]`` text embeddings.

    Returns:
        float64 ``[N]`` in [-1, 1].
    """
    if queries.ndim != 3 or text.shape != (queries.shape[0], queries.shape[2]):
        raise ConfigError(
            f"query and text embeddings don't match: {list(queries.shape)} and {list(text.shape)}"
        )
    n, count, width = queries.shape
    unit = normalized(queries.reshape(n * count, width)).view(n, count, width)
    return torch.einsum("nqd,nd->nq", unit, normalized(text)).max(dim=1).values


def match_probability(logits: Tensor) -> Tensor:
    """Probability of "match" from image-text matching logits ``[N, 2]``: one softmax, second column, float64
    ``[N]``.

    (The example in transformers' documentation applies softmax twice and so can't exceed 0.731.)
    """
    return torch.softmax(logits.to(torch.float64), dim=1)[:, 1]
