"""Timestep segments: one denoiser that uses another expert in every range of noise levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from hasten.extend import clone_tree, parameter_names, unwrapped

__all__ = ["segment_of", "segmented"]


def segment_of(time: float, bounds: Sequence[float]) -> int:
    """Number of the segment of a flow time. ``bounds`` descend; segment 0 is the noisiest."""
    return sum(time < bound for bound in bounds)


def segmented(
    experts: Sequence[nn.Module], bounds: Sequence[float], time: Callable[[Mapping[str, Any]], float]
) -> nn.Module:
    """A denoiser that has the attributes of the first expert and computes every forward with the expert of its segment.

    Args:
        experts: one for each segment, noisiest first.
        bounds: descending flow times at which the expert changes.
        time: flow time of a forward, from its arguments by name.
    """
    names = parameter_names(experts[0])
    twin = clone_tree(unwrapped(experts[0]))

    def forward(*args: Any, **kwargs: Any) -> Any:
        expert = experts[segment_of(time(dict(zip(names, args)) | kwargs), bounds)]
        return expert(*args, **kwargs)

    twin.forward = forward
    return twin
