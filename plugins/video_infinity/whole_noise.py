"""Noise that does not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hasten.extend import FrameAxis
from hasten.plugins.video_infinity.session import Session

__all__ = ["WholeNoise"]


class WholeNoise(TorchFunctionMode):
    """Draws the noise of the whole video where noise for the frames of this rank is asked for, and returns their part.

    Args:
        session: the run.
        axis: where frames are.
        shape: that of a tensor with the frames of this rank; ``None`` until it is known.
    """

    def __init__(self, session: Session, axis: FrameAxis, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self._session = session
        self._axis = axis
        self.shape = None if shape is None else tuple(shape)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.randn or self.shape is None:
            return func(*args, **kwargs)
        shape = tuple(args[0]) if len(args) == 1 and not isinstance(args[0], int) else tuple(args)
        axis, session = self._axis, self._session
        # One sample at a time with a list of generators.
        if shape not in (self.shape, (1, *self.shape[1:])):
            return func(*args, **kwargs)
        if kwargs.get("generator") is None:
            # The pipeline did not pass its generator; the global one differs between ranks.
            kwargs["generator"] = session.generator
            kwargs["device"] = session.generator.device
        whole = list(shape)
        whole[axis.dim] = shape[axis.dim] // len(session.held) * session.frames
        return axis.take(func(tuple(whole), **kwargs), session.frames, session.held)
