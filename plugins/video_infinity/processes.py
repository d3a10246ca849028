"""The processes of one run: joining them, making sure they agree, and saying which one is at fault when one is lost.

``torchrun`` starts and restarts them; nothing here manages processes.
"""

from __future__ import annotations

import atexit
import gc
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hasten._errors import ConfigError, RankError
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.transport import Alone, Distributed, Transport

__all__ = ["Processes", "first_difference", "join"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_joined: Processes | None = None


@dataclass
class Processes:
    """A group of processes, laid out as (branches of guidance, clips).

    Args:
        rank: this process, from 0.
        world: how many there are.
        timeout: seconds after which a silent one counts as lost.
        store: where they leave notes for each other; ``None`` for a single process.
        cfg_ranks: how many ranks share a run of clips, one for each branch of guidance.
    """

    rank: int = 0
    world: int = 1
    timeout: float = 0.0
    store: dist.Store | None = None
    cfg_ranks: int = 1
    clip_group: dist.ProcessGroup | None = field(default=None, repr=False)
    cfg_group: dist.ProcessGroup | None = field(default=None, repr=False)
    where: str = "at the start"
    """What the run is doing, for messages."""

    @property
    def clip_rank(self) -> int:
        """Which run of clips this process computes."""
        return self.rank % (self.world // self.cfg_ranks)

    @property
    def clip_ranks(self) -> int:
        """How many runs of clips there are."""
        return self.world // self.cfg_ranks

    @property
    def branch(self) -> int:
        """Which branch of guidance this process computes."""
        return self.rank // self.clip_ranks

    def transport(self) -> Transport:
        """The way to the processes with other clips."""
        if self.clip_group is None or self.clip_ranks == 1:
            return Alone()
        return Distributed(self.clip_group, self.explain)

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of every process, in order of ranks.

        Raises:
            RankError: one of them did not answer.
        """
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise self.explain(error) from error
        return values

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compare what every process is about to compute.

        Raises:
            RankError: they differ; the same message on all of them.
        """
        everyone = self.gather(dict(facts))
        for rank, other in enumerate(everyone):
            found = first_difference(everyone[0], other)
            if found is not None:
                name, first, value = found
                raise RankError(
                    f"the processes do not agree on {name}: rank 0 has {_shown(first)}, rank {rank} has "
                    f"{_shown(value)}. Start all of them with the same command, code and files."
                )

    def explain(self, error: BaseException) -> RankError:
        """The error to raise where a message could not be sent or received, naming the ranks that are gone."""
        lost = self._silent()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if lost:
            ranks = f"rank {lost[0]}" if len(lost) == 1 else f"ranks {', '.join(map(str, lost))}"
            return RankError(
                f"{ranks} of {self.world} failed, was killed or hung for {self.timeout:g} s {self.where} "
                f"(noticed by rank {self.rank}: {reason}). What is finished is kept; with a checkpoint "
                "folder the same command resumes."
            )
        return RankError(
            f"rank {self.rank} of {self.world} lost its peers {self.where}: {reason}. With a checkpoint "
            "folder the same command resumes."
        )

    def _silent(self) -> list[int]:
        """Ranks that have not noticed a failure themselves: they are gone, or stuck."""
        if self.store is None:
            return []
        try:
            self.store.set(f"noticed/{self.rank}", "1")
            end = time.monotonic() + min(3.0, self.timeout)
            while True:
                lost = [r for r in range(self.world) if not self.store.check([f"noticed/{r}"])]
                if not lost or time.monotonic() > end:
                    return lost
                time.sleep(0.1)
        except RuntimeError:  # the store went down with the process that kept it
            return []


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first entry in which two nested mappings differ."""
    for name in (*one, *(key for key in other if key not in one)):
        first, second = one.get(name), other.get(name)
        if first == second:
            continue
        if isinstance(first, dict) and isinstance(second, dict):
            inner = first_difference(first, second)
            if inner is not None:
                return f"{name}.{inner[0]}", inner[1], inner[2]
        return name, first, second
    return None


def join(config: VideoInfinityConfig, device: torch.device) -> Processes:
    """The processes that ``torchrun`` started together with this one, or this one alone.

    Args:
        config: time limits, back end and layout.
        device: where the pipeline computes.

    Raises:
        ConfigError: the environment is incomplete or does not fit.
        RankError: the others cannot be reached.
    """
    global _joined
    if _joined is not None and _joined.cfg_ranks == config.cfg_ranks:
        return _joined
    processes = _join(config, device)
    if processes.world > 1:
        _joined = processes
    return processes


def _join(config: VideoInfinityConfig, device: torch.device) -> Processes:
    cfg_ranks = config.cfg_ranks
    if not dist.is_initialized():
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            if cfg_ranks > 1:
                raise ConfigError(
                    f"cfg_ranks={cfg_ranks} needs processes: start with torchrun --nproc-per-node 2"
                )
            return Processes()
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} is not set, though others of {', '.join(_NEEDED)} are: start the "
                "script with torchrun"
            )
        if int(os.environ["WORLD_SIZE"]) == 1 and cfg_ranks == 1:
            return Processes()
        _initialise(config, device)
    world, rank = dist.get_world_size(), dist.get_rank()
    if world % cfg_ranks:
        raise ConfigError(f"cfg_ranks={cfg_ranks} does not divide {world} processes")
    store = dist.distributed_c10d._get_default_store()
    processes = Processes(rank, world, config.timeout_s, store, cfg_ranks, dist.group.WORLD)
    if cfg_ranks > 1:
        mesh = dist.init_device_mesh(
            device.type, (cfg_ranks, world // cfg_ranks), mesh_dim_names=("cfg", "clip")
        )
        processes.clip_group, processes.cfg_group = mesh.get_group("clip"), mesh.get_group("cfg")
    # NCCL makes its communicator in a collective of all ranks, never in a neighbour exchange.
    processes.gather(None)
    return processes


def _initialise(config: VideoInfinityConfig, device: torch.device) -> None:
    backend = config.backend or ("nccl" if device.type == "cuda" else "gloo")
    patience = timedelta(seconds=config.join_timeout_s)
    store: Any = None
    try:
        store, rank, world = next(iter(dist.rendezvous("env://", timeout=patience)))
        # torchrun keeps its store over restarts, with the addresses of processes that have ended in it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"hasten/{attempt}", store)
        # Some load their model faster than others; the group's own limit is for messages.
        store.set(f"here/{rank}", "1")
        store.wait([f"here/{other}" for other in range(world)], patience)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=config.timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).strip().splitlines()[0]
        raise RankError(
            f"rank {os.environ['RANK']} could not join the other {os.environ['WORLD_SIZE']} processes at "
            f"{address} with {backend}: {reason}. Is the port free, do all nodes name the same address, and "
            "does the network interface exist (set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to choose one)? "
            "A slow model needs a longer join_timeout_s"
        ) from error
    # A back end's threads that outlive the interpreter end the process with SIGABRT, after all work is done.
    atexit.register(_leave)


def _leave() -> None:
    """Leave the group for good: its threads end once nothing refers to it any more."""
    global _joined
    if _joined is not None:
        _joined.clip_group = _joined.cfg_group = None
    _joined = None
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # what a run leaves behind refers to itself


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
