"""Outputs that are held: who owns one is told, and no crash leaves one locked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hasten._errors import ConflictError
from hasten._lock import owned

HOLD = (
    "import sys, time\n"
    "from hasten._lock import owned\n"
    "with owned(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@contextmanager
def held_elsewhere(output: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``output``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["folder", "video.mp4"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / str(request.param)
    if not path.suffix:
        path.mkdir()
    return path


def test_the_owner_is_named_and_one_that_was_killed_has_let_go(output: Path) -> None:
    with held_elsewhere(output) as process:
        expected = f"{output.name} is being written by process {process.pid} on {socket.gethostname()}: wait"
        with pytest.raises(ConflictError, match=expected), owned(output):
            pytest.fail("held twice")
        with pytest.raises(ConflictError, match=expected), owned(output):  # asking changes nothing
            pytest.fail("held twice")
        process.kill()
        process.wait()
        with owned(output):
            (lock,) = output.parent.rglob("*.lock")
            assert lock.read_text().split() == [str(os.getpid()), socket.gethostname()]
    assert list(output.parent.rglob("*.lock")) == []


def test_a_thread_may_hold_an_output_again_and_another_may_not(output: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with owned(output):
                found.append("held")
        except ConflictError as error:
            found.append(str(error))

    def ask() -> str:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return found.pop()

    with owned(output):
        with owned(output):
            pass
        assert f"process {os.getpid()} on" in ask()
    assert ask() == "held"


def test_an_error_lets_go(output: Path) -> None:
    with pytest.raises(KeyboardInterrupt), owned(output):
        raise KeyboardInterrupt
    assert list(output.parent.rglob("*.lock")) == []


def test_two_names_of_one_output_are_one_output(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    for name, other in (("real", "link"), ("real.mp4", "link.mp4")):
        with (
            held_elsewhere(tmp_path / name),
            pytest.raises(ConflictError, match="written by process"),
            owned(tmp_path / other),
        ):
            pytest.fail("held twice")


def test_processes_of_one_launch_do_not_exclude_each_other(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with held_elsewhere(output):
        monkeypatch.setenv("RANK", "1")
        with owned(output), owned(output, rank=2):
            assert len(list(output.parent.rglob("*.lock"))) == 3
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(ConflictError), owned(output):
            pytest.fail("held twice")


def test_a_lock_of_another_kind_is_no_mystery(tmp_path: Path) -> None:
    """What lies in the lock file may be anything."""
    (tmp_path / ".hasten.lock").write_bytes(b"\xff\x00damaged")
    with owned(tmp_path):
        pass
