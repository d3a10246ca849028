"""Runs the clips of one process one at a time, and switches where a clip has to wait for the others.

Each clip runs an unmodified forward of the denoiser. In a layer that mixes frames, it sends its boundary frames,
continues until it needs those of its neighbours, and then lets the next clip run. So peak memory is that of one clip
plus what each clip keeps between two such layers, and clips exchange data in the same way within and between processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from typing import Any, TypeVar

import torch

__all__ = ["Lockstep"]

ResultT = TypeVar("ResultT")


class _AbandonedError(Exception):
    """Another clip failed, so this one stops."""


class Lockstep:
    """One computation per clip; exactly one of them runs at any time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alive: list[int] = []
        self._turn: int | None = None
        self._failure: BaseException | None = None

    def run(self, functions: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
        """The results of ``functions``, in order. If one raises, all stop and its error is raised here."""
        if len(functions) == 1:
            return [functions[0]()]
        self._alive, self._turn, self._failure = list(range(len(functions))), 0, None
        results: list[Any] = [None] * len(functions)
        adopt = _thread_state()

        def work(index: int) -> None:
            try:
                self._await_turn(index)
                with adopt():
                    results[index] = functions[index]()
            except _AbandonedError:
                pass
            except BaseException as error:
                self._fail(error)
            finally:
                self._leave(index)

        threads = [
            threading.Thread(target=copy_context().run, args=(work, index), daemon=True)
            for index in range(len(functions))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt reaches only this thread
            self._fail(error)
            raise
        if self._failure is not None:
            raise self._failure
        return results

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Let the other clips run until ``ready()``, which must be true already if there is a single clip."""
        index = self._turn
        while not ready():
            if index is None or len(self._alive) < 2:
                raise RuntimeError("a clip waits for others that have ended: their layers differ")
            with self._changed:
                place = self._alive.index(index)
                self._turn = self._alive[(place + 1) % len(self._alive)]
                self._changed.notify_all()
            self._await_turn(index)

    def _await_turn(self, index: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == index or self._failure is not None)
        if self._failure is not None:
            raise _AbandonedError

    def _leave(self, index: int) -> None:
        with self._changed:
            place = self._alive.index(index)
            self._alive.remove(index)
            if self._turn == index:
                self._turn = self._alive[place % len(self._alive)] if self._alive else None
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()


def _thread_state() -> Callable[[], ExitStack]:
    """The thread-local state of torch in this thread, as a context for another thread."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    casts = {kind: torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)}
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def adopt() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind, dtype in casts.items():
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        if stream is not None:
            stack.enter_context(torch.cuda.device(stream.device))
            stack.enter_context(torch.cuda.stream(stream))
        return stack

    return adopt
