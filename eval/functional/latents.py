"""Errors before decoding: final latents, trajectories, and the tokens of autoregressive models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.eval.functional.moments import as_float64
from hasten.extend import ConfigError


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim < 2:
        raise ConfigError(
            f"Latents [N, ...] of equal shape are needed, not {list(a.shape)} and {list(b.shape)}."
        )
    return as_float64(a).flatten(1), as_float64(b).flatten(1)


def relative_l2(base: Tensor, candidate: Tensor) -> Tensor:
    """``|candidate - base| / |base|`` of each sample.

    Args:
        base: ``[N, ...]`` latents of the baseline.
        candidate: the same shape.

    Returns:
        float64 ``[N]``; infinite where the base is zero and the candidate is not, 0 where both are.
    """
    a, b = _pair(base, candidate)
    error = (b - a).norm(dim=1)
    return torch.where(error == 0, error, error / a.norm(dim=1))


def latent_cosine(base: Tensor, candidate: Tensor) -> Tensor:
    """Cosine of each sample's latents as vectors: float64 ``[N]``."""
    a, b = _pair(base, candidate)
    return torch.nn.functional.cosine_similarity(a, b, dim=1, eps=torch.finfo(torch.float64).tiny)


def trajectory_divergence(base: Sequence[Tensor], candidate: Sequence[Tensor]) -> Tensor:
    """Relative L2 error after each step.

    Args:
        base: one ``[N, ...]`` tensor per step.
        candidate: the same steps.

    Returns:
        float64 ``[steps, N]``.

    Raises:
        ConfigError: if the numbers of steps differ: other schedules have no common steps.
    """
    if len(base) != len(candidate) or not base:
        raise ConfigError(
            f"Trajectories of {len(base)} and {len(candidate)} steps can't be compared step by step."
        )
    return torch.stack([relative_l2(a, b) for a, b in zip(base, candidate, strict=True)])


@dataclass(frozen=True)
class TokenAgreement:
    """Agreement of two multi-scale token maps.

    Attributes:
        per_scale: float64 ``[scales, N]``, fraction of equal code indices.
        first_divergent: ``[N]``, first scale with a difference; the number of scales where there is none.
    """

    per_scale: Tensor
    first_divergent: Tensor


def token_agreement(base: Sequence[Tensor], candidate: Sequence[Tensor]) -> TokenAgreement:
    """Where two visual-autoregressive runs part.

    Args:
        base: code indices ``[N, tokens_s]`` (or any trailing shape) per scale.
        candidate: the same scales.

    Raises:
        ConfigError: if scales or shapes differ.
    """
    if len(base) != len(candidate) or not base:
        raise ConfigError(f"Token maps of {len(base)} and {len(candidate)} scales can't be compared.")
    rows = []
    for scale, (a, b) in enumerate(zip(base, candidate, strict=True)):
        if a.shape != b.shape:
            raise ConfigError(f"Scale {scale} has tokens of the shapes {list(a.shape)} and {list(b.shape)}.")
        rows.append((a == b).flatten(1).to(torch.float64).mean(1))
    per_scale = torch.stack(rows)
    same_so_far = (per_scale == 1).to(torch.long).cumprod(0)
    return TokenAgreement(per_scale, same_so_far.sum(0))
