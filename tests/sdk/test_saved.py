"""Pictures of an earlier run: recognised where they are whole, made again where they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hasten._errors import CheckpointError, ConfigError
from hasten._generation import Sample
from hasten._output import OutputFolder
from hasten._processes import Processes
from hasten._saved import is_intact, save_frames

REQUEST = {"model": "m", "prompts": ["a", "b"], "seed": 0}


def picture(level: int, side: int = 64) -> Image.Image:
    return Image.effect_noise((side, side), level).convert("RGB")


def sample(index: int, frames: int = 1) -> Sample:
    return Sample(index, "a", index, tuple(picture(50 + i) for i in range(frames)), 0.5)


def open_folder(folder: Path, **changes: Any) -> OutputFolder:
    return OutputFolder(folder, {**REQUEST, **changes}, Processes())


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def forget_checksums(folder: Path) -> None:
    """Make the folder one of an earlier version."""
    manifest = folder / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    text = "".join(json.dumps({k: v for k, v in line.items() if k != "sha256"}) + "\n" for line in lines)
    manifest.write_text(text)
    request = json.loads((folder / "request.json").read_text())
    request.pop("sha256")
    (folder / "request.json").write_text(json.dumps(request))


@pytest.mark.parametrize("old", [False, True], ids=["with checksums", "of an earlier version"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_damaged_picture_is_made_again(
    tmp_path: Path, frames: int, damage: Callable[[Path], Any], old: bool
) -> None:
    folder = open_folder(tmp_path)
    for index in range(2):
        folder.add(sample(index, frames))
    if old:
        forget_checksums(tmp_path)
    assert list(open_folder(tmp_path).records()) == [0, 1]
    damage(tmp_path / "00001.png" if frames == 1 else tmp_path / "00001" / "00001.png")
    again = open_folder(tmp_path)
    if old and frames > 1 and damage is Path.unlink:  # nobody wrote down how many frames there were
        assert list(again.records()) == [0, 1]
        return
    assert list(again.records()) == [0]
    again.add(sample(1, frames))
    assert list(again.records()) == [0, 1]


def test_one_bit_is_enough(tmp_path: Path) -> None:
    path, digest = save_frames([picture(9)], tmp_path, "a")
    assert is_intact(path, digest)
    flip(path)
    assert not is_intact(path, digest)


def test_what_was_there_before_does_not_stay(tmp_path: Path) -> None:
    """Frames of a longer video, and a picture where a video comes, would be taken for a part of it."""
    save_frames([picture(1)], tmp_path, "a")
    for count in (3, 2):
        path, digest = save_frames([picture(i) for i in range(count)], tmp_path, "a")
        assert is_intact(path, digest)
        assert len(list(path.iterdir())) == count
        assert not (tmp_path / "a.png").exists()
    path, digest = save_frames([picture(1)], tmp_path, "a")
    assert is_intact(path, digest)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("request.json", ""),
        ("request.json", "[1, 2]"),
        ("request.json", '{"model": "m", "pro'),
        ("request.json", '{"model": "m", "sha256": "0"}'),
        ("request.json", "[" * 100_000),
        ("manifest.jsonl", "[]\n"),
        ("manifest.jsonl", '{"index": 0}\n'),
        ("manifest.jsonl", '{"index": "0", "file": "00000.png", "seconds": 1}\n'),
        ("manifest.jsonl", "\n"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, file: str, content: str) -> None:
    open_folder(tmp_path).add(sample(0))
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{file}.*(remove|choose another)"):
        open_folder(tmp_path).records()


def test_another_request_is_still_told_from_a_damaged_one(tmp_path: Path) -> None:
    open_folder(tmp_path)
    with pytest.raises(ConfigError, match="another seed"):
        open_folder(tmp_path, seed=1)
