"""Processes: two learn the same codes and notice a disagreement about experts; a killed one goes on to the bit."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hasten._errors import HastenError
from hasten.plugins.aptp.agreement import agree
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_search_ends_in_the_same_bits(tmp_path):
    def run(task, folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(WORKER), task, str(folder)]
        return subprocess.run(command, env=environment, capture_output=True, timeout=280, check=False)

    assert run("alone", tmp_path / "whole").returncode == 0
    assert run("killed", tmp_path / "parts").returncode == -signal.SIGKILL
    assert not (tmp_path / "parts" / "search" / "search.json").exists()
    assert run("alone", tmp_path / "parts").returncode == 0
    folders = [tmp_path / name / "search" for name in ("whole", "parts")]
    states = [load_file(folder / "state.safetensors") for folder in folders]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len({(folder / "search.json").read_text() for folder in folders}) == 1
    steps = [
        [json.loads(line)["step"] for line in (f / "curve.jsonl").read_text().splitlines()] for f in folders
    ]
    assert steps[0] == steps[1] == list(range(1, 15))


def test_agreement_needs_a_process_group():
    with pytest.raises(HastenError, match="process group"):
        agree([Decision(0, 1.0, "router")])
