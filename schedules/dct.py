"""Change the size of a noisy latent without colouring its noise: the truncated orthonormal DCT.

Per axis, ``D = C_low^T [C_full]_{1..low}`` takes the lowest ``low`` of ``full`` cosine coefficients and brings them
back on the small grid. Its rows are orthonormal, ``D D^T = I``: white noise stays white with the same variance,
which no interpolation achieves. The picture shrinks in *natural* amplitude, ``D x_full ~ r x_low`` with
``r = sqrt(full / low)`` per axis.

Source: the resolution transitions of SPEED, arXiv 2605.18736; the orthonormal DCT-II of Ahmed, Natarajan and Rao,
1974.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["apply_separable", "cosine_basis", "dct_expand", "dct_truncate", "truncation_matrix"]

_CACHED_MATRICES = 128


@lru_cache(maxsize=_CACHED_MATRICES)
def cosine_basis(size: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Orthonormal DCT-II matrix ``C``: ``C @ x`` are the cosine coefficients of ``x``.

    Args:
        size: number of samples, at least 1.
        dtype: floating-point type of the result; float32 unless given.
        device: where the result lives.

    Returns:
        (size, size) matrix with ``C C^T = I``; row ``k`` has ``k / 2`` cycles per image. Cached: do not write to it.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    # A matrix cached while inference mode is on could not be used where gradients are wanted.
    with torch.inference_mode(False):
        sample = torch.arange(size, dtype=torch.float64, device="cpu")
        frequency = sample[:, None]
        basis = torch.cos(math.pi / size * (sample + 0.5) * frequency) * math.sqrt(2.0 / size)
        basis[0] /= math.sqrt(2.0)
        return basis.to(device=device, dtype=dtype or torch.float32)


@lru_cache(maxsize=_CACHED_MATRICES)
def truncation_matrix(
    full: int,
    low: int,
    taper: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The one-dimensional ``D`` that takes ``full`` samples to ``low``.

    Args:
        full: samples before, at least ``low``.
        low: samples after, at least 1.
        taper: fade the last ``taper`` coefficients out with a half cosine (0 is exact; less than ``low``).
        dtype: floating-point type of the result; float32 unless given.
        device: where the result lives.

    Returns:
        (low, full) matrix; with ``taper=0`` its rows are orthonormal. Cached: do not write to it.
    """
    if not 1 <= low <= full:
        raise ValueError(f"truncation needs 1 <= low <= full, got low={low} and full={full}")
    if not 0 <= taper < low:
        raise ValueError(f"taper must be in [0, {low}) for {low} coefficients, got {taper}")
    with torch.inference_mode(False):
        kept = cosine_basis(full, torch.float64)[:low] * _window(low, taper)[:, None]
        matrix = cosine_basis(low, torch.float64).T @ kept
        return matrix.to(device=device, dtype=dtype or torch.float32)


def _window(size: int, taper: int) -> Tensor:
    """(size,) weights: 1, then a half-cosine fade over the last ``taper``."""
    weights = torch.ones(size, dtype=torch.float64, device="cpu")
    if taper:
        position = (torch.arange(taper, dtype=torch.float64, device="cpu") + 1) / (taper + 1)
        weights[-taper:] = 0.5 * (1 + torch.cos(math.pi * position))
    return weights


def dct_truncate(x: Tensor, height: int, width: int) -> Tensor:
    """Shrink a latent to its lowest cosine coefficients, ``D x``.

    Args:
        x: floating-point tensor (..., H, W).
        height: new height, in [1, H].
        width: new width, in [1, W].

    Returns:
        (..., height, width) of the dtype of ``x``, computed in at least single precision. White noise keeps its
        variance; a picture is amplified by ``sqrt(H W / (height width))``, so divide by that for clean content.
    """
    rows, columns = _matrices(x, (x.shape[-2], height), (x.shape[-1], width), taper=0)
    return apply_separable(x, rows, columns)


def dct_expand(x: Tensor, height: int, width: int, taper: int = 0) -> Tensor:
    """Enlarge a latent with zeros in every new cosine coefficient, ``D^T x``.

    Args:
        x: floating-point tensor (..., h, w).
        height: new height, at least h.
        width: new width, at least w.
        taper: fade out the last ``taper`` coefficients per axis, against ringing at the edge of the band.

    Returns:
        (..., height, width) of the dtype of ``x``, computed in at least single precision. With ``taper=0``,
        :func:`dct_truncate` undoes it.
    """
    rows, columns = _matrices(x, (height, x.shape[-2]), (width, x.shape[-1]), taper)
    return apply_separable(x, rows.T, columns.T)


def _matrices(
    x: Tensor, rows: tuple[int, int], columns: tuple[int, int], taper: int
) -> tuple[Tensor, Tensor]:
    if not x.is_floating_point():
        raise TypeError(f"the DCT needs a floating-point tensor, got {x.dtype}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        truncation_matrix(*rows, taper, dtype, x.device),
        truncation_matrix(*columns, taper, dtype, x.device),
    )


def apply_separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ x @ columns^T`` over the last two axes, in the matrices' dtype, returned in the dtype of ``x``.

    Autocast is off inside: it would round the matrices, and ``D D^T = I`` with them, to half precision.
    """
    kind = x.device.type
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exact:
        return (rows @ (x.to(rows.dtype) @ columns.T)).to(x.dtype)
