"""Checkpoint files that are damaged, exchanged or not ours: named before anything is computed from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_cases import build, call
from families import baseline
from safetensors import safe_open
from safetensors.torch import save_file

import hasten
from hasten._errors import CheckpointError
from hasten.plugins.video_infinity.checkpoint import Checkpoints, ClipState, read_identity, write_identity

STEP, CLIPS = 4, range(2)


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    store = Checkpoints(tmp_path, "run")
    for step in (2, STEP):
        for clip in CLIPS:
            tensors = {"latents": torch.full((1, 2, 3), float(step * 10 + clip)), "generator": torch.zeros(8)}
            store.save(step, clip, ClipState(tensors, {"clip": clip}))
    return store


def file_of(store: Checkpoints, clip: int, step: int = STEP) -> Path:
    return store.folder / f"step-{step:05d}" / f"clip-{clip:04d}.safetensors"


def truncate(store: Checkpoints) -> None:
    file_of(store, 1).write_bytes(file_of(store, 1).read_bytes()[:-3])


def empty(store: Checkpoints) -> None:
    file_of(store, 1).write_bytes(b"")


def huge_header(store: Checkpoints) -> None:
    file_of(store, 1).write_bytes(b"\xff" * 64)


def flip(store: Checkpoints) -> None:
    content = bytearray(file_of(store, 1).read_bytes())
    content[-1] ^= 1
    file_of(store, 1).write_bytes(bytes(content))


def swap_clips(store: Checkpoints) -> None:
    contents = [file_of(store, clip).read_bytes() for clip in CLIPS]
    for clip in CLIPS:
        file_of(store, clip).write_bytes(contents[1 - clip])


def other_step(store: Checkpoints) -> None:
    file_of(store, 1).write_bytes(file_of(store, 1, 2).read_bytes())


def rewrite(store: Checkpoints, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    with safe_open(file_of(store, 1), "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, about)
    save_file(tensors, file_of(store, 1), about)


def lose_a_tensor(store: Checkpoints) -> None:
    rewrite(store, lambda tensors, about: tensors.pop("latents"))


def other_shape(store: Checkpoints) -> None:
    rewrite(store, lambda tensors, about: tensors.update(latents=tensors["latents"].reshape(3, 2, 1)))


def no_checksum(store: Checkpoints) -> None:
    rewrite(store, lambda tensors, about: about.pop("sha256"))


def other_facts(store: Checkpoints) -> None:
    rewrite(store, lambda tensors, about: about.update(facts=json.dumps({"clip": 0})))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        huge_header,
        flip,
        swap_clips,
        other_step,
        lose_a_tensor,
        other_shape,
        no_checksum,
        other_facts,
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_remedy(
    store: Checkpoints, damage: Callable[[Checkpoints], None]
) -> None:
    assert store.load(STEP, 1).tensors["latents"][0, 0, 0] == 41
    damage(store)
    with pytest.raises(CheckpointError, match=r"clip-0001.* cannot be read .*delete .*step-00004 to resume"):
        store.load(STEP, 1)


def test_folders_that_are_not_ours_are_left_alone(store: Checkpoints) -> None:
    for name in ("step-old", "step-", "step-00009x", "step-7"):
        (store.folder / name).mkdir()
    (store.folder / "step-00006").write_text("a file")
    assert store.steps(CLIPS) == {2, STEP}
    store.prune({STEP}, CLIPS)
    assert store.steps(CLIPS) == {STEP}
    assert (store.folder / "step-old").is_dir()


@pytest.mark.parametrize("content", ["", "[]", "3", '{"clips": 2}', '{"clips": "two", "sha256": "0"}'])
def test_a_damaged_description_of_the_run_is_named(tmp_path: Path, content: str) -> None:
    assert read_identity(tmp_path) is None
    write_identity(tmp_path, {"clips": 2, "seed": None})
    assert read_identity(tmp_path) == {"clips": 2, "seed": None}
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json .*choose another checkpoint folder"):
        read_identity(tmp_path)


def test_a_run_does_not_begin_from_exchanged_clips(tmp_path: Path) -> None:
    options = {"halo": 1, "global_frames": 2, "clips": 2, "checkpoint": str(tmp_path), "checkpoint_every": 1}
    pipe = build("wan")
    with hasten.accelerate(pipe, {"video_infinity": options}):
        expected = baseline(pipe, "wan", **call("wan", 6))
        (tmp_path / "step-old").mkdir()
        assert torch.equal(baseline(pipe, "wan", **call("wan", 6)), expected)
        swapped = Checkpoints(tmp_path, "")
        contents = [file_of(swapped, clip, 2).read_bytes() for clip in CLIPS]
        for clip in CLIPS:
            file_of(swapped, clip, 2).write_bytes(contents[1 - clip])
        with pytest.raises(CheckpointError, match=r"clip-0000.* cannot be read"):
            baseline(pipe, "wan", **call("wan", 6))
        for clip in CLIPS:
            file_of(swapped, clip, 2).unlink()
        assert torch.equal(baseline(pipe, "wan", **call("wan", 6)), expected)
