"""Starts the ranks of a test: real processes with the environment of ``torchrun``, forked from a warm server.

Importing torch and diffusers takes most of a second test's time, so the server has done it.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

CONTEXT: Any = multiprocessing.get_context(os.environ.get("HASTEN_TEST_START", "forkserver"))
if CONTEXT.get_start_method() == "forkserver":
    CONTEXT.set_forkserver_preload(
        ["torch", "torch.distributed", "diffusers", "transformers", "clip_preload"]
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def _enter(
    variables: dict[str, str], log: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(variables)
    output = Path(log).open("w", buffering=1)  # noqa: SIM115
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    torch.set_num_threads(1)
    code = 0
    try:
        function(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a process group with a dead member must not be torn down politely


class Ranks:
    """The processes of one test.

    Args:
        folder: where their output goes.
        world: how many.
        function: what each runs.
        arguments: what it is given.
        more: environment variables of some ranks.
    """

    def __init__(
        self,
        folder: Path,
        world: int,
        function: Callable[..., None],
        *arguments: Any,
        more: dict[int, dict[str, str]] | None = None,
    ) -> None:
        port = free_port()
        self.logs = [folder / f"log.{rank}" for rank in range(world)]
        self.processes: list[BaseProcess] = []
        for rank, log in enumerate(self.logs):
            variables = {**environment(rank, world, port), **(more or {}).get(rank, {})}
            process = CONTEXT.Process(target=_enter, args=(variables, str(log), function, arguments))
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = 240) -> list[int | None]:
        """Exit codes; ``None`` for one that did not end."""
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]

    def output(self, rank: int) -> str:
        return self.logs[rank].read_text()

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()


def run_cases(folder: Path, cases: list[dict[str, Any]], world: int) -> list[list[tuple[Any, Any, Any]]]:
    """What every rank computes for every case: (latents, facts of the steps, error)."""
    ranks = Ranks(folder, world, compute_cases, cases, str(folder / f"out-{world}"))
    try:
        codes = ranks.wait()
    finally:
        ranks.kill()
    assert codes == [0] * world, "\n".join(map(ranks.output, range(world)))
    return [torch.load(folder / f"out-{world}.{rank}", weights_only=False) for rank in range(world)]


def compute_cases(cases: list[dict[str, Any]], out: str) -> None:
    """One rank of :func:`run_cases`."""
    from clip_cases import run

    results: list[tuple[Any, Any, Any]] = []
    for case in cases:
        try:
            case |= case.get("each", {}).get(int(os.environ["RANK"]), {})
            results.append((run(case), case.get("facts"), None))
        except Exception as error:
            traceback.print_exc()
            results.append((None, None, f"{type(error).__name__}: {error}"))
    torch.save(results, f"{out}.{os.environ['RANK']}")
