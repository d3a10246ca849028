"""Every example runs as a user would run it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import hasten

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "pictures"),
    [
        ("quickstart.py", ("accelerated.png", "baseline.png")),
        ("own_loop.py", ("own_loop.png",)),
        ("threads.py", ("thread_0.png", "thread_1.png")),
    ],
)
def test_scripts_run_and_draw(script: str, pictures: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for picture in pictures:
        assert Image.open(tmp_path / picture).size == (256, 256)
    assert "32" in result.stdout  # the low latent size stands in the report


def test_the_configuration_file_is_valid() -> None:
    config = hasten.Config.of(EXAMPLES / "bottleneck.yaml")
    assert [entry.name for entry in config.techniques] == ["bottleneck"]
    assert config.prompts


def test_a_long_video_of_ones_own_model_is_made_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    class Pipe:
        def to(self, device: str) -> Pipe:
            return self

        def set_progress_bar_config(self, **_: Any) -> None: ...

    def load(name: str, dtype: torch.dtype) -> Pipe:
        asked.update(model=name, dtype=dtype)
        return Pipe()

    def write(_: Pipe, out: str, call: dict[str, Any], options: dict[str, Any]) -> Any:
        asked.update(call, out=out, **options)
        return SimpleNamespace(frames=33, path=out, world=1, denoise_seconds=1.0)

    monkeypatch.setattr(hasten, "load", load)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("hasten.plugins.video_infinity.long_video.write_video", write)
    line = (
        "long_video.py ./my-wan long.mp4 33 12 --prompt storm --dtype bfloat16 --clip-frames 21 --height 480"
    )
    monkeypatch.setattr(sys, "argv", line.split())
    runpy.run_path(str(EXAMPLES / "long_video.py"), run_name="__main__")
    assert asked.pop("generator").initial_seed() == 0
    assert asked == {
        "model": "./my-wan",
        "dtype": torch.bfloat16,
        "prompt": "storm",
        "num_frames": 33,
        "num_inference_steps": 12,
        "height": 480,
        "clip_frames": 21,
        "checkpoint": "long.mp4.checkpoint",
        "out": "long.mp4",
    }
    assert "33 frames in long.mp4" in capsys.readouterr().out


def test_the_matrix_tests_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    """With stand-ins for interpreters and ``make``: 3.11 passes, 3.12 fails, 3.13 is absent."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "matrix").write_text((EXAMPLES.parent / ".ci" / "matrix").read_text("utf-8"))
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "make": "exit 0",
        "python3.11": "exit 0",
        "python3.12": "exit 0",
        "python3.13": "exit 1",
        "uv": "exit 1",
    }
    for name, line in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    for version, code in (("3.11", 0), ("3.12", 1)):
        python = tmp_path / f".venv-{version}" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nexit {code}\n")
        python.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.defpath}", "PYENV_ROOT": str(tmp_path), "HOME": str(tmp_path)}
    command = ["sh", str(tmp_path / ".ci" / "matrix")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines()[-3:] == [
        "passed: 3.11",
        "failed: 3.12",
        "not tested, because no such interpreter was found: 3.13",
    ]
    assert done.returncode == 1


def test_the_python_asked_for_is_the_one_that_resolves() -> None:
    """What a dependency needs, hasten needs."""
    from importlib.metadata import metadata

    needed = {
        tuple(map(int, re.findall(r"\d+", metadata(name)["Requires-Python"])[:2]))
        for name in ("hasten", "torch", "diffusers", "transformers", "accelerate", "typer", "pydantic")
    }
    own = tuple(map(int, re.findall(r"\d+", metadata("hasten")["Requires-Python"])[:2]))
    assert own == max(needed) == (3, 11)
