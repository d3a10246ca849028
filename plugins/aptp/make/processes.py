"""The processes of a training run: number of this one, and reductions over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["all_reduced", "average_gradients", "rank", "same_everywhere", "world"]


def rank() -> int:
    """Number of this process."""
    return torch.distributed.get_rank() if _grouped() else 0


def world() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if _grouped() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes; a missing gradient counts as zero."""
    if world() == 1:
        return
    for parameter in parameters:
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = all_reduced(grad) / world()


def all_reduced(value: Tensor, how: Literal["sum", "max"] = "sum") -> Tensor:
    """Sum or maximum over all processes, on the device of ``value``; it is sent from the device of accelerate."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    operation = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}[how]
    sent = value.to(PartialState().device, copy=True)
    torch.distributed.all_reduce(sent, op=operation)
    return sent.to(value.device)


def same_everywhere(tensor: Tensor) -> bool:
    """Whether the tensor has the same bits in all processes."""
    if world() == 1:
        return True
    value = tensor.detach().double()
    return bool(torch.equal(all_reduced(-value, "max"), -all_reduced(value, "max")))


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
