"""What a launcher says of the processes is read by the host's one reader, and refused where it makes no sense."""

from __future__ import annotations

import pytest
from families import FAMILIES

import hasten
from hasten import ConfigError
from hasten.commands import Processes
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.joining import expected
from hasten.plugins.video_infinity.plugin import VideoInfinity

ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK, WORLD_SIZE and LOCAL_RANK must be numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 does not exist with WORLD_SIZE=2"),
    ],
)
def test_what_makes_no_sense_is_refused(
    said: dict[str, str], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ADDRESS, **said}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=match):
        expected(VideoInfinityConfig())


def test_ranks_are_as_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ADDRESS, "RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    found = expected(VideoInfinityConfig(cfg_ranks=2))
    assert (found.rank, found.world, found.clip_rank, found.branch) == (3, 4, 1, 1)


def test_the_mesh_of_eight_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ADDRESS, "WORLD_SIZE": "8", "RANK": "6"}.items():
        monkeypatch.setenv(name, value)
    found = expected(VideoInfinityConfig(data_ranks=2, cfg_ranks=2))
    assert (found.rank, found.world, found.clip_ranks, found.clip_rank, found.branch) == (2, 4, 2, 0, 1)
    found = expected(VideoInfinityConfig(data_ranks=4, clip_ranks=2))
    assert (found.rank, found.world, found.clip_ranks, found.clip_rank, found.branch) == (0, 2, 2, 0, 0)


@pytest.mark.parametrize(
    ("world", "options", "message"),
    [
        (
            1,
            {"data_ranks": 2, "cfg_ranks": 2, "clip_ranks": 4},
            "needs processes: start with torchrun --nproc-per-node 16",
        ),
        (
            6,
            {"data_ranks": 2, "cfg_ranks": 2},
            "data_ranks=2 x cfg_ranks=2 needs a multiple of 4 processes, and 6 were",
        ),
        (
            4,
            {"data_ranks": 2, "clip_ranks": 4},
            "data_ranks=2 x clip_ranks=4 needs 8 processes, and 4 were started",
        ),
        (2, {"clip_ranks": 1}, "clip_ranks=1 needs 1 processes, and 2 were started"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_in_the_plan(
    world: int, options: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world > 1:
        for name, value in {**ADDRESS, "WORLD_SIZE": str(world), "RANK": "1"}.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        expected(VideoInfinityConfig(**options))  # type: ignore[arg-type]
    plan = hasten.plan(FAMILIES["wan"](), {"video_infinity": options})
    assert any(message in finding.message and finding.severity == "error" for finding in plan.findings)


def test_batches_belong_to_those_that_work_together() -> None:
    processes = [Processes(rank, 6, together=2) for rank in range(6)]
    assert [[p.owns(batch) for p in processes].index(True) // 2 for batch in range(4)] == [0, 1, 2, 0]
    assert all(sum(p.owns(batch) for p in processes) == 2 for batch in range(4))
    assert [p.leads for p in processes] == [True, False] * 3
    plugin = VideoInfinity(VideoInfinityConfig(data_ranks=3))
    assert plugin.ranks_per_call(6) == 2


def test_a_checkpoint_is_of_one_video() -> None:
    with pytest.raises(ConfigError, match="several at a time"):
        hasten.Config.of({"video_infinity": {"data_ranks": 2, "checkpoint": "here"}})
