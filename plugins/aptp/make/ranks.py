"""One process, or several that share a training run: who this one is, and sums over all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["average_gradients", "rank", "same_everywhere", "world"]


def rank() -> int:
    """Number of this process."""
    return torch.distributed.get_rank() if _grouped() else 0


def world() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if _grouped() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean of the gradients over all processes, parameters without one counting as zero."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= world()


def same_everywhere(tensor: Tensor) -> bool:
    """Whether all processes hold the same bits."""
    if world() == 1:
        return True
    low, high = tensor.detach().double().clone(), tensor.detach().double().clone()
    torch.distributed.all_reduce(low, op=torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, op=torch.distributed.ReduceOp.MAX)
    return bool(torch.equal(low, high))


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
