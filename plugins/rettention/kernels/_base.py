"""What a sparse attention kernel has to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.operands import Operands

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Epilogue", "SparseKernel"]


@dataclass(frozen=True)
class Epilogue:
    """What turns attention over the kept keys into the result.

    Args:
        rho: (B, H, G, 1) in single precision, ``None`` for 1.
        residual: (B, H, G, d) in any precision, ``None`` for 0.
    """

    rho: Tensor | None
    residual: Tensor | None


class SparseKernel(ABC):
    """Attention of the grid's queries over their windows and over all other tokens."""

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, device: torch.device, dtype: torch.dtype, dim: int, layout: SparseLayout) -> str | None:
        """Why this kernel can't serve such a call, or ``None`` if it can."""

    @abstractmethod
    def attend(
        self,
        parts: Operands,
        out: Tensor,
        epilogue: Epilogue | None = None,
        *,
        need_lse: bool = False,
    ) -> Tensor | None:
        """Write ``rho O_S + R`` of the grid's queries into ``out``.

        Args:
            parts: the call.
            out: (B, H, G, d), any strides.
            epilogue: ``None`` writes ``O_S``.
            need_lse: whether the log-sum-exp of the kept scores is wanted; not together with an epilogue.

        Returns:
            (B, H, G) log-sum-exp if it was wanted.
        """
