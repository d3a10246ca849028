from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import Result

from hasten._cli._options import call_arguments
from hasten._config import Config

from .conftest import PROMPT

Run = Callable[..., Result]
QUICK = ("--steps", 4)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("command", ["demo", "generate", "plan", "plugins"])
def test_help_of_every_command_shows_examples(hasten: Run, command: str) -> None:
    result = hasten(command, "--help")
    assert result.exit_code == 0
    assert f"hasten {command}" in result.output


def test_version(hasten: Run) -> None:
    import hasten as package

    assert hasten("--version").output.strip() == package.__version__


def test_plugins_lists_techniques_and_their_origin(hasten: Run) -> None:
    listed = json.loads(hasten("plugins", "--json").output)
    assert "bottleneck" in [entry["technique"] for entry in listed["techniques"]]
    assert {entry["status"] for entry in listed["plugins"]} == {"loaded"}


def test_plugins_shows_the_options_of_one_technique(hasten: Run) -> None:
    assert "delta" in hasten("plugins", "bottleneck").output


def test_plan_prints_sizes_and_flops_without_running(hasten: Run, folder: Path) -> None:
    result = hasten(
        "plan", folder, "-e", "bottleneck", "-s", "bottleneck.low_until=0.5", "--steps", 6, "--json"
    )
    assert result.exit_code == 0, result.output
    forecast = json.loads(result.output)["plan"]["techniques"][0]["forecast"]
    sizes = {tuple(step["size"]) for step in forecast["steps"]}
    assert sizes == {(32, 32), (16, 16)}
    assert forecast["flops_ratio"] > 1


def test_plan_with_warm_up_reports_measured_milliseconds(hasten: Run, folder: Path) -> None:
    options = ("-e", "bottleneck", "-s", "bottleneck.low_until=0.5", "-s", "bottleneck.high_first=1.0")
    config = folder.parent / "prompts.yaml"
    config.write_text(f"schema: 1\nprompts: ['{PROMPT}']\nsteps: 3\n")
    result = hasten("plan", folder, "-c", config, *options, "--warm-up", "--json")
    assert result.exit_code == 0, result.output
    totals = json.loads(result.output)["measured"]["totals"]
    assert {tuple(total["resolution"]) for total in totals} == {(32, 32), (16, 16)}
    assert all(total["median_milliseconds"] > 0 for total in totals)


def test_generate_writes_both_sides_with_a_manifest(hasten: Run, folder: Path, tmp_path: Path) -> None:
    options = (
        "-e",
        "bottleneck",
        "-s",
        "bottleneck.low_until=0.3",
        "--baseline",
        "--out",
        tmp_path,
        "--seed",
        7,
    )
    result = hasten("generate", folder, "-p", PROMPT, "-p", PROMPT, *QUICK, *options)
    assert result.exit_code == 0, result.output
    for side in ("baseline", "accelerated"):
        rows = lines(tmp_path / side / "manifest.jsonl")
        assert [row["seed"] for row in rows] == [7, 8]
        assert all(Image.open(tmp_path / side / row["file"]).size == (128, 128) for row in rows)
    plain, fast = (
        Image.open(tmp_path / side / "00000.png").tobytes() for side in ("baseline", "accelerated")
    )
    assert plain != fast


def test_a_sample_does_not_depend_on_the_batch_it_is_in(hasten: Run, folder: Path, tmp_path: Path) -> None:
    common = ("generate", folder, "-p", PROMPT, "-p", PROMPT, *QUICK)
    assert hasten(*common, "--out", tmp_path / "one").exit_code == 0
    assert hasten(*common, "--out", tmp_path / "two", "--batch-size", 2).exit_code == 0
    for name in ("00000.png", "00001.png"):
        one, two = (Image.open(tmp_path / run / "baseline" / name) for run in ("one", "two"))
        worst = max(abs(a - b) for a, b in zip(one.tobytes(), two.tobytes(), strict=True))
        assert worst <= 1


def test_the_command_line_wins_over_the_file(hasten: Run, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"schema: 1\nmodel: {folder}\nprompts: ['{PROMPT}']\nseed: 3\nsteps: 2\n")
    result = hasten("generate", "-c", config, "--seed", 5, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["runs"]["baseline"]["samples"][0]["seed"] == 5


@pytest.mark.parametrize(
    ("option", "argument", "values"),
    [("frames", "num_frames", (9, 17)), ("guidance_scale", "guidance_scale", (4.0, 1.0))],
)
def test_a_call_is_as_the_file_says_unless_the_command_line_says_otherwise(
    option: str, argument: str, values: tuple[float, float]
) -> None:
    config = Config.of({"schema": 1, option: values[0]})
    assert call_arguments("folder", config, **{option: None}) == {argument: values[0]}
    assert call_arguments("folder", config, **{option: values[1]}) == {argument: values[1]}
    assert Config.of(config.to_dict()) == config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-e", "botleneck"), "did you mean 'bottleneck'"),
        (("-e", "bottleneck", "-s", "bottleneck.detla=0.1"), "did you mean 'delta'"),
        (("-e", "bottleneck", "-s", "bottleneck.delta=soft"), "delta"),
        (("-s", "bottleneck.delta=0.1"), "is not enabled"),
        (("-e", "bottleneck", "-s", "delta"), "NAME.OPTION=VALUE"),
        (("-c", "missing.yaml"), "missing.yaml"),
        (("--prompts", "missing.txt"), "missing.txt"),
        (("--dtype", "float12"), "float12"),
        (("--frames", "5"), "no argument 'num_frames': remove `frames`"),
    ],
)
def test_bad_usage_exits_2_and_names_the_remedy(
    hasten: Run, folder: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    result = hasten("generate", folder, "-p", PROMPT, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_no_prompt_is_a_usage_error(hasten: Run, folder: Path, tmp_path: Path) -> None:
    result = hasten("generate", folder, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--prompt" in result.stderr


def test_a_bad_configuration_file_names_line_and_path(hasten: Run, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("schema: 1\ntechniques:\n  - name: bottleneck\n    delta: -1\n")
    result = hasten("plan", folder, "-c", config)
    assert result.exit_code == 2
    assert "line 4" in result.stderr
    assert "techniques.0.delta" in result.stderr


@pytest.mark.parametrize(("text", "line"), [("one\n\nthree\n", 2), ("", 0)])
def test_a_bad_prompts_file_names_the_line(
    hasten: Run, folder: Path, tmp_path: Path, text: str, line: int
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(text)
    result = hasten("generate", folder, "--prompts", prompts, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert (f"prompts.txt:{line}" if line else "is empty") in result.stderr


def test_prompts_from_json_lines(hasten: Run, folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    result = hasten("generate", folder, "--prompts", prompts, *QUICK, "--out", tmp_path, "--json")
    assert json.loads(result.output)["runs"]["baseline"]["samples"][0]["prompt"] == PROMPT


def test_an_unwritable_folder_is_found_before_the_model_is_loaded(hasten: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    result = hasten("generate", "no-such-model", "-p", PROMPT, "--out", file / "out")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_a_hub_id_without_network_is_explained(
    hasten: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = hasten("generate", "someone/some-model", "-p", PROMPT, "--out", tmp_path)
    assert result.exit_code in (1, 2)
    assert "someone/some-model" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unsupported_pipeline_is_refused(hasten: Run, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    result = hasten("plan", tmp_path / "ddpm", "-e", "rettention")
    assert result.exit_code == 1
    assert "rettention refuses this DDPMPipeline" in " ".join(result.stderr.split())


def test_interrupting_keeps_what_is_finished(
    hasten: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten._cli import _generate

    pipes = []
    load = _generate.load_quietly

    def interrupted(*arguments: object) -> object:
        pipe = load(*arguments)
        step = pipe.scheduler.step
        calls = []

        def once(*args: object, **kwargs: object) -> object:
            calls.append(1)
            if len(calls) == 6:  # four steps an image: in the middle of the second one
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        pipe.scheduler.step = once
        pipes.append(pipe)
        return pipe

    monkeypatch.setattr(_generate, "load_quietly", interrupted)
    options = ("-e", "bottleneck", "-s", "bottleneck.low_until=0.3", "--out", tmp_path)
    result = hasten("generate", folder, "-p", PROMPT, "-p", PROMPT, *QUICK, *options)
    assert result.exit_code == 130
    assert len(lines(tmp_path / "accelerated" / "manifest.jsonl")) == 1
    assert Image.open(tmp_path / "accelerated" / "00000.png").size == (128, 128)
    assert type(pipes[0]).__module__.startswith("diffusers")
    first = (tmp_path / "accelerated" / "00000.png").stat().st_mtime_ns
    monkeypatch.undo()
    again = hasten("generate", folder, "-p", PROMPT, "-p", PROMPT, *QUICK, *options)
    assert again.exit_code == 0, again.output
    assert [row["index"] for row in lines(tmp_path / "accelerated" / "manifest.jsonl")] == [0, 1]
    assert (tmp_path / "accelerated" / "00000.png").stat().st_mtime_ns == first


def test_a_folder_of_other_pictures_is_left_alone(hasten: Run, folder: Path, tmp_path: Path) -> None:
    assert hasten("generate", folder, "-p", PROMPT, *QUICK, "--out", tmp_path).exit_code == 0
    before = (tmp_path / "baseline" / "00000.png").read_bytes()
    result = hasten("generate", folder, "-p", PROMPT, *QUICK, "--seed", 1, "--out", tmp_path)
    assert result.exit_code == 2
    assert "made with another seed" in result.stderr
    assert (tmp_path / "baseline" / "00000.png").read_bytes() == before


@pytest.mark.timeout(300)
def test_two_processes_make_what_one_makes(hasten: Run, folder: Path, tmp_path: Path) -> None:
    request = ["generate", str(folder), *("-p", PROMPT) * 5, "--steps", "2", "--batch-size", "2"]
    assert hasten(*request, "--out", tmp_path / "one").exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [*launcher, "-m", "hasten", *request, "--out", str(tmp_path / "two")]
    subprocess.run(command, check=True, env=os.environ | threads)
    one, two = tmp_path / "one" / "baseline", tmp_path / "two" / "baseline"
    assert [row["index"] for row in lines(two / "manifest.jsonl")] == list(range(5))
    assert not list(two.glob("*.part.jsonl"))
    for path in one.glob("*.png"):
        assert path.read_bytes() == (two / path.name).read_bytes()
