"""Every example runs as a user would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
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
        assert Image.open(tmp_path / picture).size == (128, 128)
    assert "16" in result.stdout  # the low latent size stands in the report


def test_the_configuration_file_is_valid() -> None:
    config = hasten.Config.of(EXAMPLES / "bottleneck.yaml")
    assert [entry.name for entry in config.techniques] == ["bottleneck"]
    assert config.prompts
