"""A sweep of the untrained pipeline: made once, resumed, and part of the comparison's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hasten._cli import build_app
from hasten.eval.compare.store import RunStore
from hasten.pipelines import mini

WORDS = ("-e", "bottleneck", "-s", "bottleneck.delta=0.4", "-s", "bottleneck.min_pixels=16", "--no-knee")
CALL = ("--steps", 5, "--height", 32, "--width", 32, "--batch-size", 2, "--fewer-steps", 4)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(mini.prompts(2)))
    return file


def compare(folder: Path, prompts: Path, out: Path, *arguments: Any) -> Result:
    words = ("compare", folder, "--prompts", prompts, *WORDS, *CALL, "-m", "mini_parser,psnr", "--out", out)
    return CliRunner().invoke(build_app(), [str(word) for word in (*words, *arguments)])


@pytest.fixture(scope="module")
def finished(
    folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("sweep")
    result = compare(folder, prompts, out, "--sweep", "--json")
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_every_setting_is_a_point_with_time_and_quality(finished: tuple[Path, dict[str, Any]]) -> None:
    out, document = finished
    sweep = document["sweep"]
    assert sweep == json.loads((out / "sweep.json").read_text())
    sizes = {curve["name"]: len(curve["points"]) for curve in sweep["curves"]}
    assert sizes == {
        "plain, Euler": 2,
        "plain, UniPC": 2,
        "accelerated, bottleneck.delta (5 steps)": 5,
    }
    for curve in sweep["curves"]:
        for point in curve["points"]:
            assert point["seconds"]["low"] <= point["seconds"]["value"] <= point["seconds"]["high"]
            assert "mini_parser" in point["figures"]
    assert {quantity["metric"] for quantity in sweep["quantities"]} == {"mini_parser", "psnr"}


def test_pictures_and_the_report_show_it(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    for metric in ("mini_parser", "psnr"):
        assert (out / f"sweep-{metric}.png").stat().st_size > 10_000
        assert (out / f"sweep-{metric}.svg").read_text().startswith("<?xml")
    page = (out / "report.html").read_text()
    assert 'id="sweep"' in page
    assert "accelerated, bottleneck.delta (5 steps)" in page


def test_nothing_is_made_twice_and_what_was_lost_is_made_again(
    finished: tuple[Path, dict[str, Any]], folder: Path, prompts: Path
) -> None:
    out, document = finished
    before = {key: record.sha256 for key, record in RunStore(out / "sweep").records().items()}
    lost = next(iter((out / "sweep" / "images").rglob("*.png")))
    lost.unlink()
    again = compare(folder, prompts, out, "--sweep", "--json")
    assert again.exit_code == 0, again.output
    assert {key: record.sha256 for key, record in RunStore(out / "sweep").records().items()} == before
    figures = [
        point["figures"] for curve in json.loads(again.stdout)["sweep"]["curves"] for point in curve["points"]
    ]
    assert figures == [point["figures"] for curve in document["sweep"]["curves"] for point in curve["points"]]


def test_a_comparison_without_it_says_nothing_of_it(
    finished: tuple[Path, dict[str, Any]], folder: Path, prompts: Path
) -> None:
    out, _ = finished
    plain = compare(folder, prompts, out, "--json")
    assert "sweep" not in json.loads(plain.stdout)
    assert 'id="sweep"' not in (out / "report.html").read_text()
