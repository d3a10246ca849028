"""Import of the published layout, from synthetic files of the right shapes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten._errors import CheckpointError
from hasten._target import Target
from hasten.pipelines.adapters._units import Grain, PrunableUnits
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.codes import CodeRouter
from hasten.plugins.aptp.importer import import_checkpoints
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import pruned

from .test_surgery import some

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(scenes_pipe, tmp_path_factory):
    """A small model in the published layout: two experts, a predictor with one head a module."""
    root = tmp_path_factory.mktemp("published")
    units = Target.of(scenes_pipe).capability(PrunableUnits)
    structure = units.structure(scenes_pipe.unet, Grain(ffn_units=32, align=1))
    plans = [some(structure, seed).without_whole(structure) for seed in (3, 4)]
    for number, plan in enumerate(plans):
        place = root / f"arch{number}" / "checkpoint-30000" / "unet"
        place.mkdir(parents=True)
        state = pruned(scenes_pipe.unet, structure, plan).state_dict()
        save_file({name: value.contiguous().clone() for name, value in state.items()}, place / WEIGHTS)
        (root / f"arch{number}" / "arch_vector.pt").write_bytes(b"a pickle nobody opens")
    widths = [[g.units] for g in structure.groups.values()]
    flags = [[1 if i in (2, 5) else 0] for i in range(len(widths))]
    sizes = [w[0] for w in widths] + [2]
    noise = torch.Generator().manual_seed(0)
    hypernet = {f"mh_fc.{i}.weight": torch.randn(n, 48, generator=noise) for i, n in enumerate(sizes)}
    hypernet |= {f"mh_fc.{i}.bias": torch.zeros(n) for i, n in enumerate(sizes)}
    codes = (torch.rand(2, sum(sizes), generator=noise) > 0.3).float() * 0.98
    config = {"input_dim": 48, "wn_flag": False, "structure": {"width": widths, "depth": flags}}
    quantizer = {"embedding.weight": torch.zeros(2, sum(sizes)), "embedding_gs": codes}
    for name, tensors in (("hypernet", hypernet), ("quantizer", quantizer)):
        (root / name).mkdir()
        save_file(tensors, root / name / WEIGHTS)
        fields = config if name == "hypernet" else {"n_e": 2, "depth_order": [-1, 0]}
        (root / name / "config.json").write_text(json.dumps(fields))
    return root, structure, plans


def test_experts_and_router_come_out_as_they_went_in(scenes_pipe, published, tmp_path):
    root, structure, plans = published
    import_checkpoints(root, scenes_pipe, "base", tmp_path, "some/sentence-model")
    bundle = Bundle.load(tmp_path)
    assert isinstance(bundle.router, CodeRouter)
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 24, 96)
    for number, plan in enumerate(plans):
        with torch.no_grad():
            expected = pruned(scenes_pipe.unet, structure, plan)(latents, 500, text).sample
            found = bundle.build(scenes_pipe.unet, structure, number)(latents, 500, text).sample
        assert torch.allclose(expected, found, atol=2e-2)  # half precision on disk
        assert bundle.manifest.experts[number].macs_share < 1
    assert not list(tmp_path.rglob("*.pt"))


def test_routing_by_codes_does_not_depend_on_the_batch(published, scenes_pipe, tmp_path):
    import_checkpoints(published[0], scenes_pipe, "base", tmp_path, "some/sentence-model")
    router = Bundle.load(tmp_path).router
    prompts = torch.randn(20, 48, generator=torch.Generator().manual_seed(2))
    once = [int(router.probabilities(prompt).argmax()) for prompt in prompts]
    assert once == [int(router.probabilities(prompt).argmax()) for prompt in prompts.flip(0)][::-1]
    assert set(once) == {0, 1}


@pytest.mark.parametrize("harm", ["no weights", "unknown tensor", "odd width", "gap", "no codes"])
def test_incomplete_downloads_are_named(scenes_pipe, published, tmp_path, harm):
    root = shutil.copytree(published[0], tmp_path / "published")
    weights = root / "arch1" / "checkpoint-30000" / "unet" / WEIGHTS
    match = {
        "no weights": "download the folder completely",
        "unknown tensor": "unknown",
        "odd width": "no 8 times",
    }
    if harm == "no weights":
        weights.unlink()
    elif harm == "gap":
        (root / "arch0").rename(root / "arch7")
    elif harm == "no codes":
        save_file({"embedding.weight": torch.zeros(2, 2)}, root / "quantizer" / WEIGHTS)
    else:
        tensors = load_file(weights)
        if harm == "unknown tensor":
            tensors["surprise.weight"] = torch.zeros(1)
        else:
            name = next(n for n in tensors if n.endswith("ff.net.2.weight") and "64" in str(tensors[n].shape))
            tensors[name] = tensors[name][:, :-1].contiguous()
        save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=match.get(harm, "expected arch0|quantizer has")):
        import_checkpoints(root, scenes_pipe, "base", tmp_path / "out", "some/sentence-model")


def test_an_empty_plan_of_an_uncut_checkpoint(scenes_pipe, published):
    from hasten.plugins.aptp.importer import plan_from_shapes

    state = dict(scenes_pipe.unet.state_dict())
    assert plan_from_shapes(state, state, published[1], "here") == PruningPlan()
