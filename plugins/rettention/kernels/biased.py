"""Keys with a bias on their scores, which no sparse kernel knows: dense attention to them, merged by log-sum-exp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hasten.plugins.rettention.kernels._base import Epilogue, SparseKernel
from hasten.plugins.rettention.kernels.fused import attend
from hasten.plugins.rettention.math import merge, reshape
from hasten.plugins.rettention.operands import Operands

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["attend_kept"]


def attend_kept(
    kernel: SparseKernel,
    parts: Operands,
    out: Tensor,
    epilogue: Epilogue | None = None,
    *,
    need_lse: bool = False,
) -> Tensor | None:
    """:meth:`SparseKernel.attend`, whatever the mask adds to the scores of other tokens."""
    if parts.biased is None:
        return kernel.attend(parts, out, epilogue, need_lse=need_lse)
    layout = parts.layout
    lse = kernel.attend(parts, out, need_lse=True)
    if lse is None:
        raise RuntimeError("a kernel did not return the requested log-sum-exp")
    found, sums = attend(
        parts.query[:, :, layout.span],
        layout.context(parts.key),
        layout.context(parts.value),
        parts.scale,
        parts.biased,
    )
    none = ~parts.biased.isfinite().any(
        -1
    )  # a sample without such keys adds nothing, whatever a kernel makes of it
    merged, lse = merge(out, lse, found.masked_fill(none[..., None], 0.0), sums.masked_fill(none, -torch.inf))
    out.copy_(merged if epilogue is None else reshape(merged, epilogue.rho, epilogue.residual))
    return lse if need_lse else None
