"""Joins and leaves the processes that ``torchrun`` has started, in one mesh of data, guidance and clips."""

from __future__ import annotations

import atexit
import gc
import math
import os
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from hasten.commands import Processes
from hasten.extend import ConfigError, RankError
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.heartbeat import Heartbeat
from hasten.plugins.video_infinity.process_mesh import ProcessMesh

__all__ = ["expected", "join"]


class _Shape(NamedTuple):
    """The mesh of processes: videos at a time, branches of guidance, groups of clips."""

    data: int
    cfg: int
    clips: int

    @property
    def together(self) -> int:
        """Processes that make one video."""
        return self.cfg * self.clips


_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_joined: dict[_Shape, ProcessMesh] = {}
"""The grids that this process is in, by the shape of the mesh."""


def join(config: VideoInfinityConfig, device: torch.device) -> ProcessMesh:
    """Join the processes that ``torchrun`` started with this one. Without ``torchrun``, this process alone.

    Args:
        config: time limits, backend and layout.
        device: device of the pipeline.

    Raises:
        ConfigError: the environment is incomplete or does not match the options.
        RankError: other processes cannot be reached.
    """
    shape = _shape(config, _started()[0])
    if shape not in _joined:
        processes = _join(config, shape, device)
        if not dist.is_initialized():
            return processes
        _joined[shape] = processes
    return _joined[shape]


def expected(config: VideoInfinityConfig) -> ProcessMesh:
    """The processes that :func:`join` would join, without joining them.

    Raises:
        ConfigError: the environment is incomplete or does not match the options.
    """
    world, rank = _started()
    shape = _shape(config, world)
    return ProcessMesh(rank % shape.together, shape.together, cfg_ranks=shape.cfg)


def _started() -> tuple[int, int]:
    """Number of processes, and the rank of this one.

    Raises:
        ConfigError: the environment is incomplete.
    """
    if dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} is not set, though others of {', '.join(_NEEDED)} are: start the "
                "script with torchrun"
            )
        launched = Processes.from_environment()
        return launched.world, launched.rank
    return 1, 0


def _shape(config: VideoInfinityConfig, world: int) -> _Shape:
    """The mesh of ``world`` processes.

    Raises:
        ConfigError: the options need another number of processes.
    """
    wanted = {
        "data_ranks": config.data_ranks,
        "cfg_ranks": config.cfg_ranks,
        "clip_ranks": config.clip_ranks or 1,
    }
    least = math.prod(wanted.values())
    fits = world == least if config.clip_ranks else world % least == 0
    if fits:
        return _Shape(config.data_ranks, config.cfg_ranks, world // (config.data_ranks * config.cfg_ranks))
    names = " x ".join(f"{name}={count}" for name, count in wanted.items() if count > 1) or "clip_ranks=1"
    start = f"start with torchrun --nproc-per-node {least}"
    if world == 1:
        raise ConfigError(f"{names} needs processes: {start}")
    number = f"{least} processes" if config.clip_ranks else f"a multiple of {least} processes"
    raise ConfigError(f"{names} needs {number}, and {world} were started: {start}")


def _join(config: VideoInfinityConfig, shape: _Shape, device: torch.device) -> ProcessMesh:
    if not dist.is_initialized():
        if math.prod(shape) == 1:
            return ProcessMesh()
        _initialise(config, device)
    world, rank = dist.get_world_size(), dist.get_rank()
    store: Any = dist.distributed_c10d._get_default_store()
    group = clips = dist.group.WORLD
    branches = None
    if shape.together < world or shape.cfg > 1:
        mesh = dist.init_device_mesh(device.type, tuple(shape), mesh_dim_names=("data", "guidance", "clips"))
        clips, branches = mesh.get_group("clips"), mesh.get_group("guidance")
        if shape.together < world:
            group = mesh["guidance", "clips"]._flatten("together").get_group()
            store = dist.PrefixStore(f"replica/{rank // shape.together}", store)
    own = rank % shape.together
    processes = ProcessMesh(
        own,
        shape.together,
        config.timeout_s,
        store,
        shape.cfg,
        group,
        clips,
        branches if shape.cfg > 1 else None,
    )
    # NCCL creates its communicator in a collective of all ranks, not in point-to-point messages.
    processes.gather(None)
    same = (other.heartbeat for known, other in _joined.items() if known.together == shape.together)
    processes.heartbeat = next(same, None)
    if processes.heartbeat is None:
        processes.heartbeat = Heartbeat(store, own, shape.together)
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
        layout = f"backend {backend} with {_told(config)}"
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


def _told(config: VideoInfinityConfig) -> str:
    """The options that shape the mesh, those with defaults left out."""
    shown = {"data_ranks": (config.data_ranks, 1), "clip_ranks": (config.clip_ranks, None)}
    more = "".join(f", {name}={value}" for name, (value, usual) in shown.items() if value != usual)
    return f"cfg_ranks={config.cfg_ranks}{more}"


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
        processes.group = processes.clip_group = processes.cfg_group = None
    _joined.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # a finished run leaves reference cycles
