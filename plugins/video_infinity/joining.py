"""Joins and leaves the processes that ``torchrun`` has started."""

from __future__ import annotations

import atexit
import gc
import os
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hasten.commands import Processes
from hasten.extend import ConfigError, RankError
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.heartbeat import Heartbeat
from hasten.plugins.video_infinity.process_mesh import ProcessMesh

__all__ = ["expected", "join"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_joined: dict[int, ProcessMesh] = {}
"""Layouts of the process group by ``cfg_ranks``."""


def join(config: VideoInfinityConfig, device: torch.device) -> ProcessMesh:
    """Join the processes that ``torchrun`` started with this one. Without ``torchrun``, this process alone.

    Args:
        config: time limits, backend and layout.
        device: device of the pipeline.

    Raises:
        ConfigError: the environment is incomplete or does not match the options.
        RankError: other processes cannot be reached.
    """
    if config.cfg_ranks not in _joined:
        processes = _join(config, device)
        if processes.world == 1:
            return processes
        _joined[config.cfg_ranks] = processes
    return _joined[config.cfg_ranks]


def expected(config: VideoInfinityConfig) -> ProcessMesh:
    """The processes that :func:`join` would join, without joining them.

    Raises:
        ConfigError: the environment is incomplete or does not match the options.
    """
    cfg_ranks, world, rank = config.cfg_ranks, 1, 0
    if dist.is_initialized():
        world, rank = dist.get_world_size(), dist.get_rank()
    elif "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} is not set, though others of {', '.join(_NEEDED)} are: start the "
                "script with torchrun"
            )
        launched = Processes.from_environment()
        world, rank = launched.world, launched.rank
    elif cfg_ranks > 1:
        raise ConfigError(f"cfg_ranks={cfg_ranks} needs processes: start with torchrun --nproc-per-node 2")
    if world % cfg_ranks:
        raise ConfigError(f"cfg_ranks={cfg_ranks} does not divide {world} processes")
    return ProcessMesh(rank, world, cfg_ranks=cfg_ranks)


def _join(config: VideoInfinityConfig, device: torch.device) -> ProcessMesh:
    cfg_ranks = config.cfg_ranks
    alone = expected(config).world == 1
    if not dist.is_initialized():
        if alone:
            return ProcessMesh()
        _initialise(config, device)
    world, rank = dist.get_world_size(), dist.get_rank()
    store = dist.distributed_c10d._get_default_store()
    processes = ProcessMesh(rank, world, config.timeout_s, store, cfg_ranks, dist.group.WORLD)
    if cfg_ranks > 1:
        mesh = dist.init_device_mesh(
            device.type, (cfg_ranks, world // cfg_ranks), mesh_dim_names=("cfg", "clip")
        )
        processes.clip_group, processes.cfg_group = mesh.get_group("clip"), mesh.get_group("cfg")
    # NCCL creates its communicator in a collective of all ranks, not in point-to-point messages.
    processes.gather(None)
    processes.heartbeat = next((other.heartbeat for other in _joined.values()), None)
    if processes.heartbeat is None:
        processes.heartbeat = Heartbeat(store, rank, world)
        atexit.register(processes.heartbeat.stop)
    return processes


def _initialise(config: VideoInfinityConfig, device: torch.device) -> None:
    backend = config.backend or ("nccl" if device.type == "cuda" else "gloo")
    patience = timedelta(seconds=config.join_timeout_s)
    store: Any = None
    try:
        store, rank, world = next(iter(dist.rendezvous("env://", timeout=patience)))
        # If an agent of torchrun hosts the store, it keeps the addresses of ended processes after a restart, so every
        # attempt has a prefix. Each machine counts only its own restarts, so several machines must not share the
        # store of an agent (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), and need no prefix.
        kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if kept else "0"
        store = dist.PrefixStore(f"hasten/{attempt}", store)
        # Models load at different speeds, and the time limit of the group is for messages.
        layout = f"backend {backend} with cfg_ranks={config.cfg_ranks}"
        store.set(f"here/{rank}", layout)
        names = [f"here/{other}" for other in range(world)]
        store.wait(names, patience)
        layouts = [store.get(name).decode() for name in names]
    except (RuntimeError, ValueError, OSError) as error:
        raise _unreachable(backend, error) from error
    _require_equal(layouts, store, rank)
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=config.timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise _unreachable(backend, error) from error
    # Backend threads that outlive the interpreter would abort the process at exit.
    atexit.register(_leave)


def _require_equal(layouts: list[str], store: dist.Store, rank: int) -> None:
    """Refuse different layouts, before any group is created."""
    other = next((other for other, layout in enumerate(layouts) if layout != layouts[0]), None)
    if other is None:
        return
    with suppress(RuntimeError):  # wait until all have read it: the store ends with its process
        store.set(f"differs/{rank}", "1")
        store.wait([f"differs/{one}" for one in range(len(layouts))], timedelta(seconds=10))
    raise RankError(
        f"the processes do not agree on how to work together: rank 0 wants {layouts[0]}, rank {other} "
        f"{layouts[other]}. Start all of them with the same command, code and files."
    )


def _unreachable(backend: str, error: BaseException) -> RankError:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    reason = str(error).strip().splitlines()[0]
    return RankError(
        f"rank {os.environ['RANK']} could not join the other {os.environ['WORLD_SIZE']} processes at "
        f"{address} with {backend}: {reason}. Is the port free, do all nodes name the same address, and "
        "does the network interface exist (set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to choose one)? "
        "A slow model needs a longer join_timeout_s"
    )


def _leave() -> None:
    """Leave the group; its threads end when nothing refers to it."""
    for processes in _joined.values():
        processes.clip_group = processes.cfg_group = None
    _joined.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # a finished run leaves reference cycles
