"""Heartbeats, which distinguish a process that has ended from one that is busy."""

from __future__ import annotations

import threading
import time

import torch.distributed as dist

__all__ = ["HEARTBEAT_TIMEOUT", "Heartbeat"]

_EVERY = 0.5
HEARTBEAT_TIMEOUT = 3.0
"""Seconds without a heartbeat after which a process counts as ended."""


class Heartbeat:
    """Increments a counter in the store twice a second, in a background thread, and reads those of the others.

    Args:
        store: the store that all processes share.
        rank: rank of this process.
        world: number of processes.
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
        """Ranks without a heartbeat for :data:`HEARTBEAT_TIMEOUT` seconds."""
        now = time.monotonic()
        return {rank for rank, (_, at) in self._seen.items() if now - at > HEARTBEAT_TIMEOUT}

    def stop(self) -> None:
        """Stop the heartbeat and its thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while not self._stopped.wait(_EVERY):
            count += 1
            try:
                self._store.set(f"heartbeat/{self._rank}", str(count))
                for rank in self._others:
                    self._look(rank)
            except RuntimeError:  # the process that hosted the store is gone
                return

    def _look(self, rank: int) -> None:
        name = f"heartbeat/{rank}"
        if not self._store.check([name]):
            return
        value = self._store.get(name)
        if value != self._seen[rank][0]:
            self._seen[rank] = (value, time.monotonic())
