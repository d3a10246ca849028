"""Signs of life, by which a process that has ended is told from one that is busy."""

from __future__ import annotations

import threading
import time

import torch.distributed as dist

__all__ = ["PATIENCE", "Pulse"]

_EVERY = 0.5
PATIENCE = 3.0
"""Seconds without a sign of life after which a process counts as ended."""


class Pulse:
    """Counts in the store, twice a second, in a thread of its own, and looks at the others' counts.

    Args:
        store: shared by all processes.
        rank: this process.
        world: how many there are.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self._store, self._rank = store, rank
        self._others = [other for other in range(world) if other != rank]
        now = time.monotonic()
        self._seen: dict[int, tuple[bytes, float]] = dict.fromkeys(self._others, (b"", now))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended(self) -> set[int]:
        """Ranks that have given no sign of life for :data:`PATIENCE` seconds."""
        now = time.monotonic()
        return {rank for rank, (_, at) in self._seen.items() if now - at > PATIENCE}

    def stop(self) -> None:
        """Fall silent, and end the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while not self._stopped.wait(_EVERY):
            count += 1
            try:
                self._store.set(f"pulse/{self._rank}", str(count))
                for rank in self._others:
                    self._look(rank)
            except RuntimeError:  # the store went down with the process that kept it
                return

    def _look(self, rank: int) -> None:
        name = f"pulse/{rank}"
        if not self._store.check([name]):
            return
        value = self._store.get(name)
        if value != self._seen[rank][0]:
            self._seen[rank] = (value, time.monotonic())
