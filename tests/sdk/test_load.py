"""`hasten.load`: what is no pipeline is said in one typed error, and what is local never asks the network."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten import CheckpointError, UnsupportedError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whatever asks the network fails the test, also where its error would be caught."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    folder = tmp_path_factory.mktemp("saved")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./my-flux", "there is no folder './my-flux' here"),
        (".", "has no model_index.json"),
        ("../my-flux", "there is no folder"),
        ("/nowhere/my-flux", "there is no folder"),
        ("~/no-such-flux", "there is no folder"),
        ("models\\my-flux", "there is no folder"),
        (Path("models/my-flux"), "there is no folder"),
        ("x.safetensors", "there is no folder"),
        ("./x.safetensors", "there is no folder"),
        ("models/x.GGUF", "there is no folder"),
        ("my-flux", "no folder here, no bundled miniature .* and no hub id"),
        ("a/b/c", "no hub id"),
        ("a/b:fp16", "no hub id"),
        ("a/b c", "no hub id"),
        ("a/b--c", "no hub id"),
        ("a/", "no hub id"),
        ("", "no hub id"),
        ("a\0b", "no hub id"),
        ("x" * 5000, "no hub id"),
        ("http://host/a", "no hub id"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_can_be_no_hub_id_is_not_asked_of_the_hub(
    name: str | Path, message: str, no_network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedError, match=message):
        hasten.load(name)
    assert no_network == []


def test_a_file_is_no_folder(tmp_path: Path, no_network: list[Any]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"is a file; give the folder .*from_single_file"):
        hasten.load(tmp_path / "x.safetensors")
    assert no_network == []


def test_a_hub_without_network_is_a_typed_error() -> None:
    with pytest.raises(UnsupportedError, match="could not be downloaded from the hub"):
        hasten.load("nobody/such-a-pipeline", local_files_only=True)


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        ("{", CheckpointError, r"model_index.json, line 1: not valid JSON.*save the pipeline again"),
        ("[]", CheckpointError, "does not name the pipeline's class"),
        ("{}", CheckpointError, "does not name the pipeline's class"),
        ('{"_class_name": null}', CheckpointError, "does not name the pipeline's class"),
        (
            '{"_class_name": "NoSuchPipeline"}',
            UnsupportedError,
            "'NoSuchPipeline', which is not a pipeline class of diffusers",
        ),
        (
            '{"_class_name": "UNet2DModel"}',
            UnsupportedError,
            "'UNet2DModel', which is not a pipeline class of diffusers",
        ),
        (
            '{"_class_name": "logging"}',
            UnsupportedError,
            "'logging', which is not a pipeline class of diffusers",
        ),
        ('{"_class_name": ["pipeline", "Mine"]}', UnsupportedError, "custom code .* not run"),
        (b"\xff\xfe{\0}\0", CheckpointError, "is UTF-16"),
        ("[" * 100_000, CheckpointError, "nested deeper"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_odd_indices(
    copy: Path, index: str | bytes, kind: type[Exception], message: str, no_network: list[Any]
) -> None:
    (copy / "model_index.json").write_bytes(index if isinstance(index, bytes) else index.encode())
    with pytest.raises(kind, match=message):
        hasten.load(copy)
    assert no_network == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": 5}, "does not say what 'unet' is: .* not 5"),
        ({"unet": ["diffusers"]}, "does not say what 'unet' is"),
        ({"unet": ["diffusers", None]}, "does not say what 'unet' is"),
        ({"unet": ["diffusers", "NoSuchModel"]}, "cannot be loaded as DDPMPipeline"),
        ({"unet": ["no_such_library", "Model"]}, "cannot be loaded as DDPMPipeline"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "has no folder vae, which its model_index.json lists"),
        ({"../unet": ["diffusers", "UNet2DModel"]}, "which is not a folder in it"),
    ],
)
def test_odd_components(copy: Path, change: dict[str, Any], message: str, no_network: list[Any]) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(CheckpointError, match=message):
        hasten.load(str(copy))
    assert no_network == []


@pytest.mark.parametrize("file", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut"])
def test_damaged_components(copy: Path, file: str, damage: str, no_network: list[Any]) -> None:
    place = copy / file
    if place.is_dir():
        shutil.rmtree(place)
    elif damage == "gone":
        place.unlink()
    else:
        data = place.read_bytes()
        place.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"cannot be loaded as DDPMPipeline|has no folder unet"):
        hasten.load(copy)
    assert no_network == []


def test_a_good_folder_loads_without_network(copy: Path, no_network: list[Any]) -> None:
    pipe = hasten.load(copy)
    assert type(pipe).__name__ == "DDPMPipeline"
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"some_option": [1, 2, 3]}))
    hasten.load(copy)
    shutil.rmtree(copy / "unet")
    assert hasten.load(copy, unet=pipe.unet).unet is pipe.unet
    assert no_network == []
