"""``hasten compare`` from the command line: files, exit codes, and that a rerun gives the same bits."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hasten._cli import build_app
from hasten.pipelines import mini

Compare = Callable[..., Result]
OPTIONS = ("-e", "bottleneck", "-s", "bottleneck.low_until=0.5", "-s", "bottleneck.high_first=1.0")
CALL = ("--steps", 4, "--height", 32, "--width", 32, "--batch-size", 2, "--fewer-steps", 2)


@pytest.fixture(scope="module")
def compare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Run the command on the untrained pipeline with four prompts; arguments come last and win."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(mini.prompts(4)))

    def run(*arguments: Any) -> Result:
        words = ("compare", folder, "--prompts", prompts, *CALL, *arguments)
        return CliRunner().invoke(build_app(), [str(word) for word in words])

    return run


@pytest.fixture(scope="module")
def finished(compare: Compare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    result = compare(*OPTIONS, "-m", "mini_parser,psnr", "--out", out)
    assert result.exit_code == 0, result.output
    return out


def without_times(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((path / "report.json").read_text())
    assert report.pop("times")
    return report


def test_a_run_leaves_records_pictures_and_both_reports(finished: Path) -> None:
    report = without_times(finished)
    assert [arm["role"] for arm in report["arms"]] == ["baseline", "candidate", *["control"] * 3]
    assert set(report["figures"]["accelerated"]) == {"mini_parser", "psnr"}
    assert "report.html" in {path.name for path in finished.iterdir()}
    assert len((finished / "records.jsonl").read_text().splitlines()) == 20
    assert report["figures"]["repeat"]["psnr"]["value"]["value"] == 100
    assert report["steps"]["accelerated"][0]["facts"]["bottleneck"]
    contest = report["contests"]["accelerated"]
    assert (contest["against"], contest["steps"], contest["outcome"]) == ("fewer steps", 2, "undecided")
    assert {name: found["decides"] for name, found in contest["differences"].items()} == {
        "mini_parser": True,
        "psnr": False,
    }


def test_a_rerun_measures_the_same_apart_from_times(compare: Compare, finished: Path, tmp_path: Path) -> None:
    result = compare(*OPTIONS, "-m", "mini_parser,psnr", "--out", tmp_path, "--no-report", "--json")
    assert result.exit_code == 0, result.output
    again = without_times(tmp_path)
    assert again == without_times(finished)
    assert not (tmp_path / "report.html").exists()
    assert json.loads(result.stdout)["pictures"] == again["pictures"]


def test_another_judgement_of_the_same_run_makes_no_picture_again(compare: Compare, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("images/*/*.png")}
    gates = ("--gate", "psnr>=99", "--gate", "flops_ratio>=1.01", "--gate", "seconds<=600")
    gates += ("--gate", "accelerated:beats_fewer_steps")
    result = compare(*OPTIONS, "-m", "psnr", "--out", finished, "--no-report", *gates)
    assert result.exit_code == 3
    assert "gate missed: psnr>=99" in result.stderr
    missed = "gate missed: accelerated:beats_fewer_steps (accelerated: measured undecided)"
    assert missed in result.stderr
    assert "undecided against plain sampling in the same time (2 steps" in " ".join(result.output.split())
    assert "seconds" not in result.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("images/*/*.png")}


def test_several_configurations_are_rows_named_after_their_files(compare: Compare, tmp_path: Path) -> None:
    for name, until in (("careful", 0.3), ("bold", 0.7)):
        text = f"schema: 1\ntechniques:\n  - {{name: bottleneck, low_until: {until}, high_first: 1.0}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    files = ("-c", tmp_path / "careful.yaml", "-c", tmp_path / "bold.yaml")
    result = compare(
        *files, "-m", "psnr", "--out", tmp_path / "out", "--fewer-steps", "bold=1", "--no-report"
    )
    assert result.exit_code == 0, result.output
    steps = {arm["name"]: arm["steps"] for arm in without_times(tmp_path / "out")["arms"]}
    assert list(steps)[:3] == ["baseline", "careful", "bold"]
    assert (steps["fewer steps (careful)"], steps["fewer steps (bold)"]) == (2, 1)


@pytest.mark.parametrize(
    "line",
    [
        "model: mini/t2i-unet",
        "prompts: [one, two]",
        "num_prompts: 3",
        "seed: 5",
        "steps: 7",
        "height: 64",
        "width: 64",
        "frames: 9",
        "guidance_scale: 2.5",
    ],
)
def test_files_that_ask_for_different_runs_are_refused(compare: Compare, tmp_path: Path, line: str) -> None:
    (tmp_path / "one.yaml").write_text("schema: 1\ntechniques: [bottleneck]\n")
    (tmp_path / "other.yaml").write_text(f"schema: 1\ntechniques: [bottleneck]\n{line}\n")
    result = compare("-c", tmp_path / "one.yaml", "-c", tmp_path / "other.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert f"other and one differ in '{line.split(':')[0]}'" in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--enable NAME or --config FILE"),
        ((*OPTIONS, "--gate", "psnr>30"), "METRIC>=VALUE"),
        ((*OPTIONS, "--gate", "fid<=30"), "'fid' is not measured"),
        ((*OPTIONS, "--margin", "psnr"), "METRIC=VALUE"),
        ((*OPTIONS, "--margin", "mini_parser=-1"), "the loss you tolerate"),
        ((*OPTIONS, "-m", "psnr", "--margin", "ssim=0.1"), "which is not measured"),
        ((*OPTIONS, "-m", "clip_score"), "clip_score.network=openai/"),
        ((*OPTIONS, "-m", "psnr", "--fewer-steps", "fast=2"), "no configuration is called 'fast'"),
        ((*OPTIONS, "-m", "psnr", "--fewer-steps", "few"), "a number of steps"),
        ((*OPTIONS, "-m", "kid", "--metric-option", "kid.network=inception"), "Inception weights"),
        ((*OPTIONS, "-m", "psnr", "--num-prompts", 1), "at least two prompts"),
        ((*OPTIONS, "-m", "mini_frechet", "--reference", "no/such/folder"), "no/such/folder"),
    ],
)
def test_wrong_usage_is_refused_before_the_model_is_loaded(
    compare: Compare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[Any, ...],
    message: str,
) -> None:
    monkeypatch.setattr("hasten.eval.commands.perform.load_quietly", lambda *_: pytest.fail("loaded"))
    result = compare("--out", tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.replace("\n", " ")


def test_a_folder_of_another_run_is_not_overwritten(compare: Compare, finished: Path) -> None:
    result = compare(*OPTIONS, "-m", "psnr", "--out", finished, "--seed", 9)
    assert result.exit_code == 2
    assert "another" in result.stderr
    assert "seed" in result.stderr


def test_without_the_report_extra_everything_else_is_written(
    compare: Compare, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.json").unlink()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = compare(*OPTIONS, "-m", "mini_parser,psnr", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    missing = "note: the HTML report is not written, because it needs jinja2: pip install 'hasten[report]'"
    assert result.stderr.count(missing) == 2
    assert "speed-up" in result.stdout
    written = without_times(tmp_path / "run")
    assert set(written["figures"]["accelerated"]) == {"mini_parser", "psnr"}
    assert written["pictures"] == without_times(finished)["pictures"]
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("words", [("compare",), ("eval",), ("eval", "doctor")])
def test_help_of_every_command_shows_examples(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(build_app(), [*words, "--help"])
    assert result.exit_code == 0
    assert f"hasten {' '.join(words)}" in result.output


@pytest.fixture(scope="module")
def kneed(compare: Compare, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """With a margin that everything keeps to, so that the lowest rung is the knee."""
    out = tmp_path_factory.mktemp("kneed")
    knee = ("-m", "mini_parser", "--margin", "mini_parser=1", "--ladder", "2,3")
    gates = ("--gate", "accelerated at the knee:speedup_knee>=0", "--gate", "speedup_knee>=0")
    fewer = ("--fewer-steps", "accelerated at the knee=1")
    return out, compare(*OPTIONS, *knee, *gates, *fewer, "--out", out)


def test_every_speed_up_is_stated_against_the_knee_as_well(kneed: tuple[Path, Result]) -> None:
    out, result = kneed
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert [rung["steps"] for rung in report["knee"]["rungs"]] == [3, 2]
    assert (report["knee"]["steps"], report["knee"]["margins"]) == (2, {"mini_parser": 1.0})
    arms = report["times"]["arms"]
    assert arms["knee"]["speedup_knee"]["value"]["value"] == 1
    assert arms["baseline"]["speedup_knee"]["value"]["value"] < 1
    steps = {name: contest["steps"] for name, contest in report["contests"].items()}
    assert steps == {"accelerated": 2, "accelerated at the knee": 1}
    said = " ".join(result.output.split())
    assert "the knee is 2 plain steps of 4, within mini_parser 1, over 4 prompts (3 held; 2 held)" in said
    assert "the knee's; " in said
    page = (out / "report.html").read_text()
    assert "The knee is 2 plain steps of 4" in page
    assert "against the knee" in page


def test_without_a_rung_that_holds_the_baseline_is_the_knee(compare: Compare, tmp_path: Path) -> None:
    knee = ("-m", "mini_parser", "--margin", "mini_parser=0", "--ladder", "2", "--no-report")
    gate = ("--gate", "accelerated at the knee:speedup>=0")
    result = compare(*OPTIONS, *knee, *gate, "--out", tmp_path)
    assert result.exit_code == 3
    assert "gate missed: accelerated at the knee:speedup>=0" in result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["knee"]["steps"] == 4
    arms = report["times"]["arms"]
    assert arms["accelerated"]["speedup_knee"] == arms["accelerated"]["speedup"]
    assert "the knee is the baseline: no fewer than 4 steps held" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ladder", "2", "--no-knee"), "contradict each other"),
        (("--ladder", "few"), "write numbers of steps"),
        (("--ladder", "9,2"), "9 steps are not between 1 and the 4"),
        (("--knee",), "give --ladder"),
        (("--ladder", "2", "-m", "psnr"), "give --margin METRIC=VALUE (of what is measured, nothing"),
        (("--ladder", "2", "-m", "mini_text_image"), "(of what is measured, mini_text_image can have one)"),
    ],
)
def test_a_knee_that_cannot_be_found_is_refused_before_the_model_is_loaded(
    compare: Compare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("hasten.eval.commands.perform.load_quietly", lambda *_: pytest.fail("loaded"))
    result = compare(*OPTIONS, "--out", tmp_path, "-m", "mini_parser", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
