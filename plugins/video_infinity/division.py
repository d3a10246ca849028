"""Divides what a pipeline prepares for the whole video among the processes, and joins latents again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from hasten.extend import FrameAxis, Pipeline, swapped
from hasten.plugins.video_infinity.session import Session
from hasten.plugins.video_infinity.whole_noise import WholeNoise

__all__ = ["divided", "gather_latents"]


@contextmanager
def divided(pipe: Pipeline, session: Session) -> Iterator[None]:
    """Let the pipeline prepare latents and conditions for the whole video, and continue with the part of this rank."""
    mixing = session.mixing
    with ExitStack() as stack:
        noise = WholeNoise(session, mixing.latents)
        division = _Division(session, noise)
        for name, axis in mixing.prepared.items():
            wrapped = division.prepare(getattr(pipe, name), axis or mixing.latents)
            stack.enter_context(swapped(pipe, name, wrapped))
        for name, arguments in mixing.beside.items():
            module = getattr(pipe, name, None)
            if module is not None:
                stack.enter_context(swapped(module, "forward", division.beside(module.forward, arguments)))
        if mixing.draws_in_loop and session.held != range(session.frames):
            stack.enter_context(noise)
        yield


class _Division:
    """Wraps what belongs to the whole video.

    Args:
        session: the run.
        noise: told the shape of the latents of this rank.
    """

    def __init__(self, session: Session, noise: WholeNoise) -> None:
        self._session = session
        self._noise = noise

    def prepare(self, original: Callable[..., Any], axis: FrameAxis) -> Callable[..., Any]:
        """A method that makes latents or conditions: it gets the whole video and returns the frames of this rank."""
        session = self._session

        def part(value: Any) -> Any:
            if session.held == range(session.frames):
                return value  # even in its memory, for the stock pipeline's very bits
            if isinstance(value, Tensor) and value.ndim > 2 and axis.holds(value, session.frames):
                return axis.take(value, session.frames, session.held).contiguous()
            return value

        def prepare(*args: Any, **kwargs: Any) -> Any:
            args = tuple(map(self._widened, args))
            result = original(*args, **{name: self._widened(value) for name, value in kwargs.items()})
            result = tuple(map(part, result)) if isinstance(result, tuple) else part(result)
            first = result[0] if isinstance(result, tuple) else result
            if self._noise.shape is None and isinstance(first, Tensor):
                self._noise.shape = tuple(first.shape)
            return result

        prepare.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        return prepare

    def _widened(self, value: Any) -> Any:
        """Zeros in the shape of the whole video for latents of this rank, of which conditions take the shape."""
        session, axis = self._session, self._session.mixing.latents
        if not isinstance(value, Tensor) or tuple(value.shape) != self._noise.shape:
            return value
        shape = list(value.shape)
        shape[axis.dim] = shape[axis.dim] // len(session.held) * session.frames
        return value.new_zeros(shape)

    def beside(self, original: Callable[..., Any], arguments: Mapping[str, FrameAxis]) -> Callable[..., Any]:
        """The forward of a network that computes every frame alone: it gets those of this rank."""
        session = self._session

        def forward(*args: Any, **kwargs: Any) -> Any:
            for name, axis in arguments.items():
                if name in kwargs:
                    kwargs[name] = axis.take_all(kwargs[name], session.frames, session.held)
            return original(*args, **kwargs)

        forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        return forward


def gather_latents(session: Session, local: Tensor, axis: FrameAxis | None = None) -> Tensor:
    """Latents of all ranks, on every rank.

    Args:
        session: the run.
        local: latents of this rank.
        axis: where their frames are; ``None`` is the place in the latents that the denoiser gets.
    """
    if session.processes.clip_ranks == 1:
        return local
    axis = axis or session.mixing.latents
    parts = session.processes.gather((session.assignment.rank, local.cpu()))
    by_rank = dict(parts)
    tensors = [by_rank[rank] for rank in sorted(by_rank)]
    lengths = [len(session.assignment.frames_of(rank)) for rank in sorted(by_rank)]
    return axis.join(tensors, lengths).to(local.device)
