"""``hasten demo``: the bundled miniature through the same comparison, with one control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from hasten._cli import build_app

SMALL = ("--num-prompts", "2", "--steps", "3", "--batch-size", "2", "--fewer-steps", "2")


def demo(*arguments: Any) -> Result:
    return CliRunner().invoke(build_app(), ["demo", *SMALL, *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("demo")
    return out, demo("--out", out)


def test_it_shows_the_shapes_that_ran_and_the_cost(finished: tuple[Path, Result]) -> None:
    out, result = finished
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["baseline", "accelerated", "fewer steps"]
    sizes = {tuple(step["resolution"]) for step in report["steps"]["accelerated"]}
    assert sizes == {(32, 32), (64, 64)}
    assert "at 32x32 (" in result.output
    assert "mini_parser" in result.output
    assert report["figures"]["accelerated"]["mini_parser"]["verdict"]["margin"] == 0.05


def test_it_leaves_a_report_and_a_picture_of_all_rows(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    assert "What each technique did" in (out / "report.html").read_text()
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 3 * 160


def test_a_second_time_it_says_that_nothing_was_measured(finished: tuple[Path, Result]) -> None:
    out, first = finished
    again = demo("--out", out)
    assert again.exit_code == 0
    assert "nothing left to generate" in again.stderr
    assert "nothing left to generate" not in first.stderr


def test_other_settings_are_those_asked_for(tmp_path: Path) -> None:
    result = demo("--set", "bottleneck.low_until=0.9", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    arms = {arm["name"]: arm for arm in json.loads(result.stdout)["arms"]}
    assert arms["accelerated"]["config"]["techniques"][0]["low_until"] == 0.9
