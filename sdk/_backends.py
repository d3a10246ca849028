"""Attention backends that the user set on processors: native while a run lasts, so that torch's attention is seen.

Processors may be shared, by layers of one model and by pipelines that run in different threads. So an override counts
its users, and the user's choice comes back when the last of them has left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hasten._compat import active_backend, processor_backend
from hasten._swap import Swap

__all__ = ["native_backend"]

_TORCH = ("NATIVE", "_NATIVE_CUDNN", "_NATIVE_EFFICIENT", "_NATIVE_FLASH", "_NATIVE_MATH")
"""Backends of diffusers that end in torch's own attention function."""


class _Override:
    """A processor on the native backend. ``users`` counts the runs in progress that need it."""

    def __init__(self, processor: object, attribute: str, native: object) -> None:
        self.processor = processor  # keeps its id from being used again
        self.chosen = getattr(processor, attribute)
        self.swap = Swap(processor, attribute, native)
        self.users = 0


_lock = threading.Lock()
_overrides: dict[int, _Override] = {}


@contextmanager
def native_backend(processor: object) -> Iterator[Any]:
    """The processor on the native backend, for the length of a ``with`` block.

    Yields:
        The backend that the user chose for it, ``None`` where that ends in torch's own attention function, or where the
        processor never asks the dispatcher.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    asked = processor_backend(processor)
    if asked is None:
        yield None  # one that bypasses torch's attention is found out when it runs
        return
    native = AttentionBackendName.NATIVE
    with _lock:
        held = _overrides.get(id(processor))
        name = asked[1] if held is None else held.chosen
        chosen = AttentionBackendName(name or active_backend())
        bypasses = chosen.name not in _TORCH
        if bypasses:
            held = held or _Override(processor, asked[0], native)
            held.users += 1
            _overrides[id(processor)] = held
    if not bypasses or held is None:
        yield None
        return
    try:
        yield chosen
    finally:
        with _lock:
            held.users -= 1
            if not held.users:
                del _overrides[id(processor)]
                held.swap.undo()
