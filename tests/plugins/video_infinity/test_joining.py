"""What a launcher says of the processes is read by the host's one reader, and refused where it makes no sense."""

from __future__ import annotations

import pytest

from hasten import ConfigError
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.joining import expected

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
