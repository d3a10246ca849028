"""Two gloo processes with uneven parts, and one without any image, equal a single process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.distributed import collect_rows, gather_moments, shard
from hasten.eval.functional.moments import Moments

WORKER = Path(__file__).with_name("distributed_worker.py")


def figures(images: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one process computes from all images."""
    specification = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.figures(images["generated"], images["reference"], slice(None))


def run(folder: Path, cases: list[dict[str, object]], world: int) -> list[list[dict[str, Tensor]]]:
    """What each rank computes for each case."""
    torch.save(cases, folder / "cases.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(world):
        arguments = [rank, world, folder / "store", folder / "cases.pt", folder / f"{rank}.pt"]
        command = [sys.executable, str(WORKER), *map(str, arguments)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def test_equals_one_process(images: Tensor, tmp_path: Path) -> None:
    generated = torch.cat([images, images.flip(3), images[:1].flip(2)])
    reference = torch.cat([255 - images, images.flip(2), images[:1]])
    # Seventeen images in uneven parts, and all of them on one of two ranks.
    cases: list[dict[str, object]] = [
        {"generated": generated, "reference": reference, "bounds": bounds}
        for bounds in ([[0, 6], [6, 17]], [[0, 0], [0, 17]])
    ]
    expected = figures({"generated": generated, "reference": reference})
    for rank, results in enumerate(run(tmp_path, cases, world=2)):
        for result in results:
            assert expected.keys() - result.keys() == ({"rows"} if rank else set())
            for name, value in result.items():
                assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-12), (rank, name)


def test_without_a_process_group() -> None:
    moments, rows = Moments.of(torch.eye(3)), torch.eye(3)
    assert gather_moments(moments) is moments
    collect_rows(rows, lambda _: pytest.fail("there is nobody to collect from"))


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_partition_in_order(n: int, world: int) -> None:
    parts = [shard(n, rank, world) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_unknown_rank() -> None:
    with pytest.raises(ConfigError, match="rank 2"):
        shard(5, 2, 2)
