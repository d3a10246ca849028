"""Several processes on one job, as ``torchrun`` or ``accelerate launch`` start them, on one file
system.

No process group is needed: each process takes whole batches by its number and writes its own records. Whole
batches, because a picture depends, in its last bit, on the batch it is made in: so every picture equals the
one that a single process makes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hasten._errors import ConfigError, HastenError

__all__ = ["PATIENCE", "Processes", "wait_for"]

PATIENCE = 1800.0
"""Seconds without any progress of the other processes after which one gives up waiting for them."""


@dataclass(frozen=True)
class Processes:
    """This process among those of one launch.

    Args:
        rank: its number, from 0.
        world: how many there are.
        local_rank: its number on this machine.
        together: how many neighbouring processes compute one call together (clips of a video).
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    together: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """What the launcher said; a single process without one.

        Raises:
            ConfigError: if the variables contradict each other.
        """
        try:
            rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
            local = int(environment.get("LOCAL_RANK", rank))
        except ValueError as error:
            raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from error
        if not 0 <= rank < world:
            raise ConfigError(f"RANK={rank} does not exist with WORLD_SIZE={world}")
        return cls(rank, world, local)

    def owns(self, batch: int) -> bool:
        """Whether this process makes batch number ``batch``, alone or with others."""
        return batch % (self.world // self.together) == self.rank // self.together

    @property
    def leads(self) -> bool:
        """Whether this process writes what it makes with the others."""
        return self.rank % self.together == 0

    def device(self, chosen: str | None) -> str | None:
        """The torch device of this process: the user's choice, else one GPU for each process where there are GPUs."""
        if chosen is not None or self.world == 1:
            return chosen
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else None


def wait_for(
    progress: Callable[[], int], goal: int, what: str, *, patience: float = PATIENCE, interval: float = 0.5
) -> None:
    """Wait until ``progress()`` reaches ``goal``.

    Raises:
        HastenError: if it has not grown for ``patience`` seconds: another process has died.
    """
    seen, since = -1, time.monotonic()
    while (now := progress()) < goal:
        if now > seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise HastenError(
                f"waited {patience:.0f} s for {what} ({now} of {goal}) from another process, which may have "
                f"died; run the same command again to continue"
            )
        time.sleep(interval)
