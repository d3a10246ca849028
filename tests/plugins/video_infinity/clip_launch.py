"""Starts the ranks of a test without ``torchrun``, which takes seconds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def start(script: str, arguments: list[str], world: int, **more: str) -> list[subprocess.Popen[str]]:
    """One process per rank of a script beside this file."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            env={**environment(rank, world, port), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def run_cases(folder: Path, cases: list[dict[str, Any]], world: int) -> list[list[tuple[Any, Any, Any]]]:
    """What every rank computes for every case: (latents, facts of the steps, error)."""
    listed = folder / f"cases-{world}.json"
    listed.write_text(json.dumps(cases))
    processes = start("clip_rank.py", [str(listed), str(folder / f"out-{world}")], world)
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return [torch.load(folder / f"out-{world}.{rank}", weights_only=False) for rank in range(world)]
