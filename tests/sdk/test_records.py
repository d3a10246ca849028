"""Records survive whatever happens while they are written."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hasten._errors import CheckpointError, HastenError
from hasten._records import append_lines, read_records, repair, write_atomically


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Files can't grow beyond ``size`` bytes: like a full disk, the kernel takes part of a write first."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_lines(path, [{"n": 0}])
    append_lines(path, [{"n": 1}, {"n": 2}])
    assert [record["n"] for record in read_records(path)] == [0, 1, 2]


@pytest.mark.parametrize("kept", range(1, 9))
def test_a_torn_last_line_is_dropped_wherever_it_was_cut(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.jsonl"
    append_lines(path, [{"n": 0}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 1}\n'[:kept])
    assert read_records(path) == [{"n": 0}]
    repair(path)
    assert path.read_bytes() == whole
    append_lines(path, [{"n": 2}])
    assert [record["n"] for record in read_records(path)] == [0, 2]


def test_a_full_disk_leaves_no_part_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_lines(path, [{"n": 0}])
    before = path.read_bytes()
    with disk_full_after(len(before) + 12), pytest.raises(HastenError, match="Free some disk space"):
        append_lines(path, [{"n": 1}, {"text": "x" * 100}])
    assert path.read_bytes() == before
    append_lines(path, [{"n": 1}])
    assert len(read_records(path)) == 2


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    with disk_full_after(10), pytest.raises(HastenError, match=r"run\.json"):
        write_atomically(path, b"n" * 100)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"{not json}\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_damaged_whole_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.jsonl"
    append_lines(path, [{"n": 0}])
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(CheckpointError, match=r"a\.jsonl:2"):
        read_records(path)
