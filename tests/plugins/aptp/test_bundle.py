"""Bundles come back as they were written; damaged or foreign ones are refused with the reason."""

import json
import shutil
from copy import deepcopy as copy_module

import pytest
import torch
from safetensors.torch import load_file, save_file

import hasten
from hasten._adapters.units import PrunableUnits
from hasten._errors import CheckpointError, UnsupportedError
from hasten._target import Target
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.manifest import Manifest, file_digest

from .conftest import PROMPTS, write_bundle

CALL = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent", "guidance_scale": 1.0}


def structure_of(pipe, bundle):
    return Target.of(pipe).capability(PrunableUnits).structure(pipe.unet, bundle.manifest.grain.grain())


@pytest.fixture
def copy(bundle_folder, tmp_path):
    return shutil.copytree(bundle_folder, tmp_path / "copy")


def signed(folder):
    """Bring the digests of an edited bundle up to date."""
    manifest = Manifest.read(folder)
    files = {name: file_digest(folder / name) for name in manifest.files}
    manifest.model_copy(update={"files": files}).write(folder)


@pytest.mark.parametrize("weights", ["slice", "lora", "shared", "full"])
def test_experts_of_every_kind_come_back(scenes_pipe, tmp_path, weights):
    folder = write_bundle(scenes_pipe, tmp_path, weights=weights)
    first, second = Bundle.load(folder), Bundle.load(folder)
    structure, latents = structure_of(scenes_pipe, first), torch.randn(2, 4, 16, 16)
    text = torch.randn(2, 24, 96)
    for number in range(3):
        outs = []
        for bundle in (first, second):
            model = bundle.build(bundle.source(scenes_pipe.unet, structure, number), structure, number)
            assert sum(p.numel() for p in model.parameters()) == bundle.manifest.experts[number].parameters
            with torch.no_grad():
                outs.append(model(latents, 500, text).sample)
        assert torch.equal(*outs)
    assert not list(folder.rglob("*.pt"))


def test_the_base_is_not_touched_by_updates(scenes_pipe, tmp_path):
    before = {name: value.clone() for name, value in scenes_pipe.unet.state_dict().items()}
    folder = write_bundle(scenes_pipe, tmp_path, weights="lora")
    with hasten.accelerate(scenes_pipe, {"aptp": {"bundle": str(folder)}}):
        scenes_pipe(PROMPTS[0], **CALL)
    assert all(torch.equal(before[name], value) for name, value in scenes_pipe.unet.state_dict().items())


def test_a_missing_file_and_a_damaged_one_are_named(copy):
    plan = copy / "experts" / "1" / "plan.json"
    whole = plan.read_text()
    plan.write_text(whole.replace("1", "2"))
    with pytest.raises(CheckpointError, match=r"plan.json is damaged"):
        Bundle.load(copy)
    plan.write_text(whole)
    (copy / "router.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"router.safetensors is missing"):
        Bundle.load(copy)


@pytest.mark.parametrize("harm", ["missing", "shape", "nan"])
def test_wrong_router_tensors_are_named(copy, harm):
    file = copy / "router.safetensors"
    tensors = load_file(file)
    if harm == "missing":
        del tensors["prototypes"]
    elif harm == "shape":
        tensors["weight"] = tensors["weight"][:, :-1].contiguous()
    else:
        tensors["mean"][0] = float("nan")
    save_file(tensors, file)
    signed(copy)
    with pytest.raises(
        CheckpointError,
        match={"missing": "lacks prototypes", "shape": "weight has shape"}.get(
            harm, "contains NaN or infinity"
        ),
    ):
        Bundle.load(copy)


@pytest.mark.parametrize("harm", ["missing", "extra", "shape"])
def test_full_weights_have_to_fit_their_plan(scenes_pipe, tmp_path, harm):
    folder = write_bundle(scenes_pipe, tmp_path, weights="full")
    file = folder / "experts" / "0" / "weights.safetensors"
    tensors = load_file(file)
    name = "conv_in.weight"
    if harm == "missing":
        del tensors[name]
    elif harm == "extra":
        tensors["conv_new.weight"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, file)
    signed(folder)
    with pytest.raises(CheckpointError, match="does not fit its plan"):
        hasten.accelerate(scenes_pipe, {"aptp": {"bundle": str(folder)}})


def test_an_update_that_fits_nothing_is_named(scenes_pipe, tmp_path):
    folder = write_bundle(scenes_pipe, tmp_path, weights="lora")
    file = folder / "experts" / "0" / "weights.safetensors"
    tensors = load_file(file)
    key = next(name for name in tensors if name.endswith("lora_B"))
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, file)
    signed(folder)
    with pytest.raises(CheckpointError, match="the pruned model has"):
        hasten.accelerate(scenes_pipe, {"aptp": {"bundle": str(folder)}})


def test_an_update_without_its_other_half_is_named(scenes_pipe, tmp_path):
    folder = write_bundle(scenes_pipe, tmp_path, weights="lora")
    file = folder / "experts" / "0" / "weights.safetensors"
    tensors = load_file(file)
    key = next(name for name in tensors if name.endswith("lora_A"))
    del tensors[key]
    save_file(tensors, file)
    signed(folder)
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        hasten.accelerate(scenes_pipe, {"aptp": {"bundle": str(folder)}})


@pytest.mark.parametrize("name", ["../stolen", "/etc/hostname", "experts/link"])
def test_a_bundle_does_not_lead_out_of_its_folder(copy, name):
    (copy.parent / "stolen").write_text("x")
    (copy / "experts" / "link").symlink_to("../../stolen")
    edited(copy, files={**json.loads((copy / "aptp.json").read_text())["files"], name: "0" * 64})
    with pytest.raises(CheckpointError, match=r"not a path inside|outside the folder"):
        Bundle.load(copy)


def test_a_file_that_is_read_has_to_be_listed(copy):
    files = json.loads((copy / "aptp.json").read_text())["files"]
    edited(copy, files={name: digest for name, digest in files.items() if "experts/1" not in name})
    with pytest.raises(CheckpointError, match=r"files does not list experts/1/plan.json"):
        Bundle.load(copy)


def edited(folder, **fields):
    file = folder / "aptp.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"experts": []}, "experts"),
        ({"surprise": 1}, "surprise"),
        ({"family": 3}, "family"),
    ],
)
def test_manifests_that_cannot_be_read_are_refused(copy, fields, message):
    edited(copy, **fields)
    with pytest.raises(CheckpointError, match=message):
        Bundle.load(copy)
    (copy / "aptp.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Bundle.load(copy)


def test_a_folder_without_a_bundle_is_answered_with_the_command(tmp_path):
    with pytest.raises(CheckpointError, match="hasten aptp export"):
        Bundle.load(tmp_path)


def test_another_base_another_family_and_a_missing_encoder_are_refused(scenes_pipe, copy, bundle_folder):
    unet = scenes_pipe.unet
    config = {"aptp": {"bundle": str(copy)}}
    with torch.no_grad():
        weight = next(unet.parameters())
        weight.add_(1)
        try:
            with pytest.raises(UnsupportedError, match="these differ"):
                hasten.plan(scenes_pipe, config)
            hasten.plan(scenes_pipe, {"aptp": {"bundle": str(copy), "base_check": "config"}})
        finally:
            weight.sub_(1)
    edited(copy, base={**json.loads((copy / "aptp.json").read_text())["base"], "config": "0"})
    with pytest.raises(UnsupportedError, match="another configuration"):
        hasten.plan(scenes_pipe, config)
    edited(copy, family="flux")
    with pytest.raises(UnsupportedError, match="family 'flux'"):
        hasten.plan(scenes_pipe, config)
    encoder, scenes_pipe.text_encoder = scenes_pipe.text_encoder, None
    try:
        with pytest.raises(UnsupportedError, match="text_encoder"):
            hasten.accelerate(scenes_pipe, {"aptp": {"bundle": str(bundle_folder)}})
    finally:
        scenes_pipe.text_encoder = encoder


def test_a_sentence_model_that_is_not_there_is_answered_with_what_to_do(scenes_pipe, copy):
    edited(copy, router={"kind": "prototypes", "encoder": "sentence", "model": "/nonexistent/mpnet"})
    with pytest.raises(UnsupportedError, match="Download it"):
        hasten.accelerate(scenes_pipe, {"aptp": {"bundle": str(copy)}})


def test_a_base_in_half_precision_is_recognised(scenes_pipe, bundle_folder):
    bundle = Bundle.load(bundle_folder)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy_module(scenes_pipe.unet).to(dtype)
        assert bundle.check_base(half, "stable-diffusion") is None
    assert next(scenes_pipe.unet.parameters()).dtype == torch.float32
