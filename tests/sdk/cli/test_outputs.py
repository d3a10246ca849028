"""Every command that writes refuses an output that another run holds, before anything is loaded."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import Result

from hasten._lock import owned

Run = Callable[..., Result]
COMMANDS: dict[str, tuple[Any, ...]] = {
    "generate": ("generate", "mini/t2i-dit", "--out", "HELD"),
    "compare": ("compare", "mini/t2i-dit", "-e", "bottleneck", "--num-prompts", 2, "--out", "HELD"),
    "demo": ("demo", "--out", "HELD"),
    "video": ("video", "mini/t2v-dit", "--out", "HELD"),
    "video to a file": ("video", "mini/t2v-dit", "--out", "HELD.mp4"),
    "video with a checkpoint": ("video", "mini/t2v-dit", "--checkpoint", "HELD", "--out", "free.mp4"),
    "eval stats": ("eval", "stats", "PICTURES", "-m", "mini_frechet", "--out", "HELD.npz"),
    "calibrate": ("calibrate", "mini/var", "--out", "HELD.json"),
    "spectrum": ("spectrum", "mini/t2i-dit", "PICTURES", "--out", "HELD.json"),
    "mini train": ("mini", "train", "autoencoder", "--runs", "PARENT"),
    "mini export": ("mini", "export", "t2i-dit", "HELD"),
    "aptp prepare": ("aptp", "prepare", "mini/t2i-unet", "--work", "HELD"),
    "aptp import": ("aptp", "import", "PICTURES", "mini/t2i-unet", "HELD"),
    "aptp eval": ("aptp", "eval", "mini/t2i-unet", "PICTURES", "--out", "HELD"),
}


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Outputs that another thread holds, and the words that stand for them."""
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    files = {f"HELD{ending}": tmp_path / f"held{ending}" for ending in (".mp4", ".npz", ".json")}
    begun, end = threading.Event(), threading.Event()

    def hold() -> None:
        from contextlib import ExitStack

        with ExitStack() as stack:
            for path in (tmp_path / "autoencoder", *files.values()):
                stack.enter_context(owned(path))
            begun.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    monkeypatch.chdir(tmp_path)
    yield {**files, "HELD": tmp_path / "autoencoder", "PARENT": tmp_path, "PICTURES": tmp_path / "pictures"}
    end.set()
    thread.join()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_an_output_that_another_run_writes_is_refused_at_once(
    hasten: Run, held: dict[str, Path], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("hasten._load.load", lambda *_, **__: pytest.fail("loaded"))
    result = hasten(*(held.get(str(word), word) for word in COMMANDS[command]))
    assert result.exit_code == 1, result.output
    told = result.stderr.replace("\n", " ")
    assert f"is being written by process {os.getpid()} on {socket.gethostname()}: wait until" in told
