"""A video command goes on from any point: in the middle of the steps, after the last one, and after the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_cases import build, call
from clip_faults import filmed
from clip_launch import Ranks
from families import seeded

from hasten.plugins.video_infinity.long_video import write_video
from hasten.plugins.video_infinity.video_file import PictureFolder, VideoFile

OPTIONS = {"halo": 1, "global_frames": 2, "clips": 2}
STEPS = 3


def contents(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def make(family: str, out: Path, options: dict[str, Any], steps: int = STEPS) -> int:
    """Write a video; how often the denoiser was called."""
    pipe, forwards = build(family), []
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    first = next(module for name, module in denoiser.named_modules() if name.endswith("attn1"))
    first.register_forward_hook(lambda *_: forwards.append(1))
    write_video(pipe, out, {**seeded(family), **call(family, 6, num_inference_steps=steps)}, options)
    return len(forwards)


class _Stop(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.fixture
def stopped_while_decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Ends the run where the second piece of the video would be written."""
    for kind in (VideoFile, PictureFolder):
        count: list[int] = []

        def write(self: Any, frames: torch.Tensor, write: Any = kind.write, count: Any = count) -> None:
            count.append(1)
            if len(count) == 2:
                raise _Stop
            write(self, frames)

        monkeypatch.setattr(kind, "write", write)
    yield monkeypatch
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("family", "name", "every"),
    [("wan", "a.mp4", 1), ("text-to-video", "pictures", 2), ("wan", "pictures", 99)],
)
def test_a_run_that_ended_while_decoding_goes_on_to_the_same_bits(
    family: str, name: str, every: int, tmp_path: Path, stopped_while_decoding: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "checkpoint": str(tmp_path / "run"), "checkpoint_every": every}
    out = tmp_path / name
    with pytest.raises(_Stop):
        make(family, out, options)
    stopped_while_decoding.undo()
    assert make(family, out, options) == 0  # no step is computed twice
    made = contents(out)
    assert make(family, out, options) == 0  # the command of a finished run, once more
    assert contents(out) == made
    (tmp_path / "whole").mkdir()
    assert make(family, tmp_path / "whole" / name, OPTIONS) > 0
    assert contents(tmp_path / "whole" / name) == made


def test_a_run_that_was_killed_while_decoding_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options, out = {**OPTIONS, "checkpoint": str(tmp_path / "run"), "timeout_s": 60.0}, tmp_path / "a.mp4"
    killed = Ranks(tmp_path, 1, filmed, str(out), options, {"rank": 0, "kind": "kill"})
    assert killed.wait() == [-signal.SIGKILL], killed.output(0)
    assert not out.exists()
    filmed(str(out), options)
    filmed(str(tmp_path / "whole.mp4"), OPTIONS)
    assert contents(out) == contents(tmp_path / "whole.mp4")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a.mp4", "whole.mp4", "log.0"}
