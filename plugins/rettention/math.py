"""The algebra of Re-ttention (arXiv 2505.22918), in the notation of the README.

``S`` is the set of keys a query keeps, ``O_S`` attention restricted to them with a softmax of its own, ``LSE`` the
logarithm of a softmax denominator. At a refresh both attentions are known:

    rho = exp(LSE_S - LSE_full)      share of the full softmax mass that ``S`` holds (eq. 8)
    R   = O_full - rho O_S           what the dropped keys contributed (eq. 10)

and a sparse step returns ``rho O_S + R`` (eq. 9) with the ``rho`` and ``R`` of the last refresh. Nothing here needs a
matrix of all pairs. Outputs are (..., N, d), ``LSE`` (..., N), ``rho`` (..., N, 1); statistics are single precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["denominator_ratio", "merge", "ramped", "rescaled", "reshape", "residual", "whole_sum"]


def denominator_ratio(lse_kept: Tensor, lse_full: Tensor) -> Tensor:
    """``rho`` in (0, 1]: (..., N) and (..., N) to (..., N, 1). Rounding may not lift it above 1."""
    return torch.exp((lse_kept - lse_full).clamp(max=0.0)).unsqueeze(-1)


def residual(full: Tensor, kept: Tensor, rho: Tensor) -> Tensor:
    """``R = O_full - rho O_S`` (..., N, d), in single precision or better."""
    wide = torch.promote_types(full.dtype, torch.float32)
    return full.to(wide) - rho * kept.to(wide)


def reshape(kept: Tensor, rho: Tensor | None, residual: Tensor | None) -> Tensor:
    """``rho O_S + R``, in the wider of the types of ``O_S`` and ``rho``. ``None`` stands for 1 and for 0."""
    if rho is None:
        return kept if residual is None else kept + residual.to(kept.dtype)
    if residual is None:
        return kept * rho
    wide = torch.promote_types(kept.dtype, rho.dtype)
    return torch.addcmul(residual.to(wide), kept.to(wide), rho.to(wide))


def ramped(rho: Tensor, ramp: float, uses: int, clamp: bool) -> Tensor:
    """``rho + ramp uses``: the paper adds ``ramp`` after every sparse step since the refresh (``uses`` so far).

    The sum may exceed 1, as in the paper, unless ``clamp`` is set.
    """
    shifted = rho + ramp * uses if ramp and uses else rho
    return shifted.clamp(max=1.0) if clamp else shifted


def rescaled(rho: Tensor, before: Tensor, now: Tensor) -> Tensor:
    """``rho`` corrected by what it turned out to be at a sample of rows, one factor per head.

    Args:
        rho: (B, H, N, 1) of the last refresh.
        before: its values at the sampled rows, (B, H, S, 1).
        now: their values at this step, (B, H, S, 1).
    """
    factor = now.mean(-2, keepdim=True) / before.mean(-2, keepdim=True).clamp(min=1e-12)
    return (rho * factor).clamp(max=1.0)


def whole_sum(lse_kept: Tensor, share: Tensor | None) -> Tensor:
    """``LSE_full = LSE_S - log rho`` (..., N) as the last refresh has it; ``None`` stands for 1.

    Args:
        lse_kept: (..., N) of the kept keys at this step.
        share: (..., N, 1) ``rho``.
    """
    return lse_kept.float() if share is None else lse_kept.float() - share.squeeze(-1).log()


def merge(first: Tensor, lse_first: Tensor, second: Tensor, lse_second: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets from attention over each.

    Args:
        first: (..., N, d).
        lse_first: (..., N).
        second: (..., N, d).
        lse_second: (..., N).

    Returns:
        The output in the type of ``first``, and its ``LSE``.
    """
    lse = torch.logaddexp(lse_first, lse_second)
    weights = (torch.exp(part - lse).unsqueeze(-1) for part in (lse_first, lse_second))
    mixed = sum(weight * part.float() for weight, part in zip(weights, (first, second)))
    return torch.as_tensor(mixed).to(first.dtype), lse
