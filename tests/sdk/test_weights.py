"""Reading tensors that someone else wrote: bounded, inside their folder, and as the index says."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hasten._errors import CheckpointError
from hasten._files import read_json
from hasten._weights import read_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(3)}, folder / "two.safetensors")
    table = {"a": "one.safetensors", "b": "two.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    return folder


def index(folder, **table):
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))


def test_shards_are_read_as_the_index_says(shards):
    assert {name: len(value) for name, value in read_weights(shards).items()} == {"a": 2, "b": 3}
    index(shards, a="one.safetensors", b="one.safetensors")
    with pytest.raises(CheckpointError, match=r"b is missing from .*one\.safetensors"):
        read_weights(shards)
    save_file({"b": torch.ones(3), "c": torch.ones(1)}, shards / "two.safetensors")
    index(shards, a="one.safetensors", b="two.safetensors")
    with pytest.raises(CheckpointError, match=r"c is not listed in .*two\.safetensors"):
        read_weights(shards)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{absolute}", "sub/../../outside.safetensors", "link", ""]
)
def test_an_index_does_not_lead_out_of_its_folder(shards, name):
    outside = shards.parent / "outside.safetensors"
    save_file({"a": torch.ones(2)}, outside)
    (shards / "link").symlink_to(outside)
    index(shards, a=name.replace("{absolute}", str(outside)))
    with pytest.raises(CheckpointError, match=r"not a path inside|outside the folder"):
        read_weights(shards)


def test_a_link_that_runs_in_a_circle_is_refused(shards):
    (shards / "one.safetensors").unlink()
    (shards / "one.safetensors").symlink_to("one.safetensors")
    with pytest.raises(CheckpointError, match=r"one\.safetensors"):
        read_weights(shards)


def test_a_snapshot_in_the_cache_of_the_hub_is_a_folder_of_links(shards, tmp_path):
    repository = tmp_path / "models--some--one"
    snapshot, store = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    store.mkdir()
    for number, file in enumerate(sorted(shards.iterdir())):
        shutil.copy(file, store / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert set(read_weights(snapshot)) == {"a", "b"}


def test_more_than_the_file_holds_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"a": torch.ones(1).expand(1 << 40)}, file)
    with pytest.raises(CheckpointError, match="a has the shape"):
        read_weights(file)
    torch.save({"a": torch.zeros(1 << 16)}, file)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(file) as given, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name in given.namelist():
            made.writestr(name, given.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        read_weights(packed)
    large = tmp_path / "large.json"
    with large.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)
    with pytest.raises(CheckpointError, match="at most"):
        read_json(large, "anything", "remedy")


def test_what_is_ignored_may_hold_anything_and_what_lies_deeper_is_named(tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"mask": torch.tensor([-torch.inf]), "a": torch.ones(1)}, file)
    assert set(read_weights(file, ignored=("mask",))) == {"a"}
    with pytest.raises(CheckpointError, match="mask contains NaN or infinity"):
        read_weights(file)
    torch.save({"trainer": {"gpt": [1]}}, file)
    with pytest.raises(CheckpointError, match=r"\['trainer'\]\['gpt'\] is not a dictionary"):
        read_weights(file, within=[("trainer", "gpt")])
    torch.save({"a": {"b": torch.ones(1)}}, file)
    with pytest.raises(CheckpointError, match="a is a dict where a tensor"):
        read_weights(file)


def test_a_folder_of_links_to_another_is_that_folder(shards, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in shards.iterdir():
        (linked / file.name).symlink_to(file)
    assert set(read_weights(linked)) == {"a", "b"}
    (linked / INDEX).unlink()
    shutil.copy(shards / INDEX, linked / INDEX)
    with pytest.raises(CheckpointError, match="outside the folder"):
        read_weights(linked)
