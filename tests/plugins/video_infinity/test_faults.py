"""Ranks that are killed, that hang, that disagree, and disks that are full: real processes, real signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_faults import STEPS, disagree, filmed, limited, load, several_faults, video
from clip_launch import Ranks

from hasten._lock import owned

TIMEOUT = 20.0
"""Generous, since a loaded machine may not run a process for seconds."""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Any]:
    """Starts ranks, and ends them with the test."""
    started: list[Ranks] = []

    def start(world: int, function: Any, *arguments: Any, more: Any = None) -> Ranks:
        folder = tmp_path / f"ranks-{len(started)}"
        folder.mkdir()
        started.append(Ranks(folder, world, function, *arguments, more=more))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The uninterrupted video of one process."""
    out = tmp_path_factory.mktemp("expected") / "out"
    video(str(out), OPTIONS)
    return torch.load(f"{out}.0")


OPTIONS = {"halo": 1, "global_frames": 2, "clips": 3, "checkpoint_every": 2, "timeout_s": TIMEOUT}


def test_killed_rank_is_named_and_the_run_resumes(ranks: Any, tmp_path: Path, expected: torch.Tensor) -> None:
    options = {**OPTIONS, "checkpoint": str(tmp_path / "run")}
    out = str(tmp_path / "out")
    # Guidance makes two forwards a step.
    fault = {"rank": 1, "step": 4 * 2 + 1, "kind": "kill"}
    first = ranks(2, video, out, options, None, fault)
    assert first.wait() == [7, -signal.SIGKILL]
    assert "RankError: rank 1 of 2 failed, was killed or hung for 20 s in step 5 of 6" in first.output(0)
    steps = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert steps == ["step-00002", "step-00004"]
    # Fewer processes go on, and compute the last two steps only.
    again = ranks(1, video, out, options)
    assert again.wait() == [0], again.output(0)
    assert torch.equal(load(out, 1)[0], expected)
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-00004", "step-00006"]


def test_resuming_with_another_prompt_or_more_ranks_than_clips_is_refused(
    ranks: Any, tmp_path: Path, expected: torch.Tensor
) -> None:
    options = {**OPTIONS, "checkpoint": str(tmp_path / "run")}
    out = str(tmp_path / "out")
    # A finished run is not computed again.
    done = ranks(2, video, out, options)
    assert done.wait() == [0, 0], done.output(0)
    for latents in load(out, 2):
        assert float((latents - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    other = ranks(2, video, out, options, {"guidance_scale": 7.0})
    assert other.wait() == [7, 7]
    many = ranks(4, video, out, {k: v for k, v in options.items() if k != "clips"} | {"clips": 3})
    for rank in range(2):
        assert "CheckpointError: checkpoint folder" in other.output(rank)
        assert "another arguments.guidance_scale (5.0 there, 7.0 now)" in other.output(rank)
    assert many.wait() == [7] * 4
    assert "ConfigError: 3 clips cannot occupy 4 processes; start at most 3" in many.output(2)


def test_hung_rank_is_named_within_the_timeout(ranks: Any, tmp_path: Path) -> None:
    fault = {"rank": 0, "step": 1, "kind": "hang"}
    stuck = ranks(2, video, str(tmp_path / "out"), {**OPTIONS, "timeout_s": 6.0}, None, fault)
    stuck.processes[1].join(60)
    assert stuck.processes[1].exitcode == 7
    assert "RankError: rank 0 of 2 failed, was killed or hung for 6 s in step 1 of 6" in stuck.output(1)
    seconds = float(stuck.output(1).rsplit("after ", 1)[1].split()[0])
    assert 5.0 < seconds < 30.0


def test_the_rank_that_ended_is_named_and_not_one_that_computes(ranks: Any, tmp_path: Path) -> None:
    """Of three ranks the last one is killed while the first one is busy for longer than it takes to notice."""
    faults = [{"rank": 2, "step": 1, "kind": "kill"}, {"rank": 0, "step": 1, "kind": "busy"}]
    three = ranks(3, several_faults, str(tmp_path / "out"), OPTIONS, faults)
    three.processes[1].join(60)
    assert three.processes[1].exitcode == 7
    assert "RankError: rank 2 of 3 failed, was killed" in three.output(1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"rank": 0, "kind": "kill"}, "rank 0 of 2 (ended while decoding|failed, was killed)|lost its peers"),
        (
            {"rank": 0, "kind": "hang"},
            "rank 0 of 2 has written no frame for 6 s while decoding.*raise timeout_s",
        ),
        ({"rank": 1, "kind": "kill", "family": "text-to-video"}, "rank 1 of 2 ended while decoding"),
        (
            {"rank": 0, "kind": "error"},
            "rank 0 could not write its part of the video; its own message says why",
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_rank_lost_while_decoding_is_named(
    ranks: Any, tmp_path: Path, fault: dict[str, Any], message: str
) -> None:
    both = ranks(2, filmed, str(tmp_path / "a.mp4"), {**OPTIONS, "clips": 2, "timeout_s": 6.0}, fault)
    other = 1 - fault["rank"]
    both.processes[other].join(60)
    assert both.processes[other].exitcode == 7, both.output(other)
    assert re.search(message, both.output(other)), both.output(other)


@pytest.mark.parametrize(
    "call",
    [
        {"solver": "EulerAncestralDiscreteScheduler"},
        {"solver": "DPMSolverMultistepScheduler"},
        {"generator": None},
    ],
    ids=lambda call: str(next(iter(call.values()))),
)
def test_noise_solver_and_seed_are_resumed(ranks: Any, tmp_path: Path, call: dict[str, Any]) -> None:
    """Stopped in the fifth step and gone on with: the video of an uninterrupted run with the same checkpoints."""
    whole, halved = (str(tmp_path / name) for name in ("whole", "halved"))
    options = {**OPTIONS, "checkpoint": str(tmp_path / "run")}
    fault = {"rank": 0, "step": 4 * 2 + 1, "kind": "error"}
    assert ranks(1, video, halved, options, call, fault).wait() == [1]
    if "solver" in call:
        assert ranks(1, video, whole, OPTIONS, call).wait() == [0]
    else:  # the seed is known of the run that began it
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        for folder in (tmp_path / "copy").glob("step-*"):
            shutil.rmtree(folder)
        assert ranks(1, video, whole, {**options, "checkpoint": str(tmp_path / "copy")}, call).wait() == [0]
    assert ranks(1, video, halved, options, call).wait() == [0]
    assert torch.equal(load(halved, 1)[0], load(whole, 1)[0])


def test_both_branches_of_guidance_are_resumed(ranks: Any, tmp_path: Path, expected: torch.Tensor) -> None:
    options = {**OPTIONS, "checkpoint": str(tmp_path / "run"), "cfg_ranks": 2}
    out = str(tmp_path / "out")
    fault = {"rank": 1, "step": 4, "kind": "error"}
    assert ranks(2, video, out, options, None, fault).wait() == [7, 1]
    again = ranks(2, video, out, options)
    assert again.wait() == [0, 0], again.output(0)
    for latents in load(out, 2):
        assert float((latents - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_error_and_interrupt_of_one_rank_end_the_other(ranks: Any, tmp_path: Path) -> None:
    for kind, code in (("error", 1), ("interrupt", 1)):
        one = ranks(2, video, str(tmp_path / "out"), OPTIONS, None, {"rank": 1, "step": 1, "kind": kind})
        assert one.wait() == [7, code]
        assert "RankError: rank 1 of 2" in one.output(0)


def test_full_disk_keeps_what_was_written(ranks: Any, tmp_path: Path, expected: torch.Tensor) -> None:
    options = {**OPTIONS, "checkpoint": str(tmp_path / "run")}
    out = str(tmp_path / "out")
    full = ranks(2, limited, out, options, 6000)
    assert full.wait() == [7, 7]
    assert "CheckpointError" in full.output(1)
    assert "cannot be written (File too large); what was written before is kept" in full.output(1)
    assert not list((tmp_path / "run").rglob("*.part"))
    again = ranks(2, video, out, options)
    assert again.wait() == [0, 0], again.output(0)
    assert float((load(out, 2)[1] - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_folder_that_another_run_holds_is_refused_on_all_ranks(ranks: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with owned(tmp_path / "run"):
        both = ranks(2, video, str(tmp_path / "out"), {**OPTIONS, "checkpoint": str(tmp_path / "run")})
        assert both.wait() == [7, 7]
    for rank in range(2):
        assert f"ConflictError: {tmp_path / 'run'} is being written by process {os.getpid()}" in both.output(
            rank
        )


def test_ranks_that_disagree_say_so_alike(ranks: Any, tmp_path: Path) -> None:
    other = {**OPTIONS, "halo": 2}
    both = ranks(2, disagree, str(tmp_path / "out"), [OPTIONS, other])
    assert both.wait() == [7, 7]
    for rank in range(2):
        assert (
            "RankError: the processes do not agree on options.halo: rank 0 has 1, rank 1 has 2"
            in both.output(rank)
        )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"cfg_ranks": 2},
            "rank 0 wants backend gloo with cfg_ranks=1, rank 1 backend gloo with cfg_ranks=2",
        ),
        ({"checkpoint_every": 3}, "do not agree on checkpoint_every: rank 0 has 2, rank 1 has 3"),
        ({"checkpoint": "FOLDER"}, "do not agree on checkpoint is set: rank 0 has False, rank 1 has True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_ranks_have_to_agree_on_before_they_exchange_anything(
    ranks: Any, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    both = ranks(2, disagree, str(tmp_path / "out"), [OPTIONS, {**OPTIONS, **other}])
    assert both.wait() == [7, 7]
    for rank in range(2):
        assert message in both.output(rank), both.output(rank)


def test_missing_peer_and_incomplete_environment(ranks: Any, tmp_path: Path) -> None:
    lonely = ranks(
        1, video, str(tmp_path / "out"), {**OPTIONS, "join_timeout_s": 2.0}, more={0: {"WORLD_SIZE": "2"}}
    )
    assert lonely.wait() == [7]
    assert "RankError: rank 0 could not join the other 2 processes at 127.0.0.1" in lonely.output(0)


def test_port_in_use_and_no_network_interface(ranks: Any, tmp_path: Path) -> None:
    options = {**OPTIONS, "join_timeout_s": 5.0}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"MASTER_PORT": str(taken.getsockname()[1]), "WORLD_SIZE": "2"}
        blocked = ranks(1, video, str(tmp_path / "out"), options, more={0: port})
        assert blocked.wait() == [7]
    assert f"127.0.0.1:{port['MASTER_PORT']} with gloo" in blocked.output(0)
    assert "Is the port free" in blocked.output(0)
    missing = {"GLOO_SOCKET_IFNAME": "nothing0"}
    deaf = ranks(2, video, str(tmp_path / "out"), options, more={0: missing, 1: missing})
    assert deaf.wait() == [7, 7]
    for rank in range(2):
        assert "does the network interface exist (set GLOO_SOCKET_IFNAME" in deaf.output(rank)


def test_damaged_checkpoint_is_named(ranks: Any, tmp_path: Path) -> None:
    options = {**OPTIONS, "checkpoint": str(tmp_path / "run")}
    assert ranks(1, video, str(tmp_path / "out"), options).wait() == [0]
    broken = tmp_path / "run" / f"step-{STEPS:05d}" / "clip-0001.safetensors"
    broken.write_bytes(broken.read_bytes()[:50])
    again = ranks(1, video, str(tmp_path / "out"), options)
    assert again.wait() == [7]
    assert f"CheckpointError: checkpoint {broken} cannot be read" in again.output(0)
    identity = tmp_path / "run" / "run.json"
    identity.rename(tmp_path / "away")
    lost = ranks(1, video, str(tmp_path / "out"), options)
    assert lost.wait() == [7]
    assert "has steps but no run.json, which says what they are" in lost.output(0)
    identity.write_text("{")
    worse = ranks(1, video, str(tmp_path / "out"), options)
    assert worse.wait() == [7]
    assert "run.json cannot be read" in worse.output(0)
