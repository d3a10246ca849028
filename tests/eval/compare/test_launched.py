"""A process that is really killed, and a run that ``torchrun`` finishes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.eval.compare.run import Request, run_comparison
from hasten.eval.compare.store import RunStore

WORKER = Path(__file__).with_name("launched.py")


@pytest.mark.timeout(1500)
def test_a_killed_process_is_continued_by_two(
    pipe: Any, folder: Path, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    out, threads = tmp_path / "out", str(torch.get_num_threads())
    arguments = [str(WORKER), str(folder), str(out), threads]
    process = subprocess.Popen([sys.executable, *arguments, "0.5"])
    own = out / "records" / "rank-0.jsonl"
    deadline = time.monotonic() + 600
    while not (own.exists() and own.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    store = RunStore(out)
    before = {key: record.sha256 for key, record in store.records().items()}
    assert 0 < len(before) < 20
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, *arguments, "0"], check=True, timeout=800)
    alone = run_comparison(pipe, request_of(), tmp_path / "alone")
    assert {key: r.sha256 for key, r in store.records().items()} == {
        key: r.sha256 for key, r in alone.records().items()
    }
    lines = sum(len(path.read_text().splitlines()) for path in own.parent.iterdir())
    assert lines == 20
    assert len(list(own.parent.iterdir())) == 2
    assert before.items() <= {key: r.sha256 for key, r in store.records().items()}.items()
