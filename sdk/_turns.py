"""Who is calling an accelerated pipeline: one thread at a time, since a call swaps parts of the pipeline object."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from hasten._errors import ConflictError

__all__ = ["Turns"]


class Turns:
    """Admits one accelerated call, or any number of stock ones while the acceleration is paused.

    A thread that is calling may call again, from a callback for example.

    Args:
        pipeline: class name, for messages.
    """

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._accelerated: Counter[int] = Counter()
        self._stock: Counter[int] = Counter()

    @contextmanager
    def taken(self, *, stock: bool = False) -> Iterator[None]:
        """One call, for the length of a ``with`` block.

        Args:
            stock: whether it is a call of the stock pipeline.

        Raises:
            ConflictError: another thread is in a call that cannot run beside this one.
        """
        thread = threading.get_ident()
        calls = self._stock if stock else self._accelerated
        with self._lock:
            others = self._accelerated if stock else self._accelerated + self._stock
            if any(other != thread for other in others):
                raise ConflictError(
                    f"this accelerated {self._pipeline} is in a call in another thread, and a call swaps parts of the "
                    f"pipeline. Put a lock around the calls, or give each thread a view over the same weights: "
                    f"hasten.acceleration_of(pipe).view()"
                )
            calls[thread] += 1
        try:
            yield
        finally:
            with self._lock:
                calls[thread] -= 1
                if not calls[thread]:
                    del calls[thread]
