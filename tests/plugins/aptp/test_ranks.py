"""Two gloo processes: the same codes on both, and a disagreement about experts is noticed on both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hasten._errors import HastenError
from hasten.plugins.aptp.ranks import agree
from hasten.plugins.aptp.router import Decision

WORKER = Path(__file__).with_name("gloo_worker.py")


def launch(task, folder):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = []
    for rank in range(2):
        shared = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(WORKER), task, str(folder)]
        environment = {**os.environ, **shared, **place, "ACCELERATE_USE_CPU": "1"}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    for process in processes:
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said.decode()[-3000:]


@pytest.mark.timeout(300)
def test_two_processes_learn_the_same_codes(tmp_path):
    launch("search", tmp_path)
    first, second = (load_file(tmp_path / f"codes{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "plans0.txt").read_text() == (tmp_path / "plans1.txt").read_text()
    assert (tmp_path / "search" / "state.safetensors").is_file()


@pytest.mark.timeout(300)
def test_ranks_that_disagree_on_an_expert_are_told(tmp_path):
    launch("disagree", tmp_path)
    for rank in range(2):
        assert (
            "rank 1 routes its prompts to experts [1], rank 0 to [0]"
            in (tmp_path / f"said{rank}.txt").read_text()
        )


def test_agreement_needs_a_process_group():
    with pytest.raises(HastenError, match="process group"):
        agree([Decision(0, 1.0, "router")])
