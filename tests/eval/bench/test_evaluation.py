"""The benchmarks of evaluation run, measure what they say, and print it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hasten._cli import build_app
from hasten.eval.bench.evaluation import time_fid, time_images


def test_each_part_of_a_distance_is_timed_apart() -> None:
    rows = time_fid(64, 16)
    assert [row["part"] for row in rows] == [
        "statistics, reference",
        "statistics, candidate",
        "distance",
        "interval, 25 groups",
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert len(time_fid(64, 16, interval=False)) == 3


def test_decoding_is_compared_with_this_process() -> None:
    rows = time_images(6, 16, 1, 1)
    assert [row["decoding"] for row in rows] == ["in this process", "in 1 processes"]
    assert rows[0]["speed-up"] == 1


def test_the_command_prints_a_table_or_json() -> None:
    arguments = ["bench", "fid", "--features", "32", "--dimensions", "8"]
    shown = CliRunner().invoke(build_app(), arguments)
    assert shown.exit_code == 0, shown.output
    assert "statistics, candidate" in shown.output
    printed = json.loads(CliRunner().invoke(build_app(), [*arguments, "--json"]).stdout)
    assert printed["rows"][2]["part"] == "distance"
    assert printed["machine"]["threads"] >= 1


@pytest.mark.slow
def test_ten_thousand_inception_vectors_take_less_than_a_minute() -> None:
    rows = time_fid(10_000, 2048, interval=False)
    assert sum(row["seconds"] for row in rows) < 60
    assert max(row["memory, MB"] for row in rows) < 1000
