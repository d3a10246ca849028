"""Import of the published layout, from synthetic files of the right shapes."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten._adapters.units import Grain, PrunableUnits
from hasten._errors import CheckpointError
from hasten._target import Target
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.importer import import_checkpoints, read_router
from hasten.plugins.aptp.math import depth_probabilities, open_probability, paper_gates
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.published_router import CodeRouter, gate_vector
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
        "odd width": "not 8 times",
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


@pytest.mark.parametrize("names", [("weight_g", "weight_v"), ("original0", "original1")])
def test_a_weight_normalised_predictor_is_the_one_it_stands_for(published, tmp_path, names):
    plain = read_router(published[0], published[1])
    root = shutil.copytree(published[0], tmp_path / "published")
    file = root / "hypernet" / WEIGHTS
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith(".weight")]:
        layer = torch.nn.Linear(tensors[name].shape[1], tensors[name].shape[0])
        layer.weight.data = tensors.pop(name)
        new = names[0].startswith("original")
        with warnings.catch_warnings(action="ignore"):
            normalised = (torch.nn.utils.parametrizations if new else torch.nn.utils).weight_norm(layer)
        state = {key: value for key, value in normalised.state_dict().items() if key != "bias"}
        assert {key.rpartition(".")[2] for key in state} == set(names)
        # Lengths do not tell: only their product with the directions does.
        state = {key: value * (3.0 if key.endswith(names[1]) else 1.0) for key, value in state.items()}
        tensors |= {name.removesuffix("weight") + key: value for key, value in state.items()}
    save_file(tensors, file)
    assert torch.allclose(read_router(root, published[1]).weight, plain.weight, atol=1e-6)
    tensors["mh_fc.0.weight"] = torch.zeros(1, 48)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"mh_fc\.0\.weight is present in more than one"):
        read_router(root, published[1])


def test_a_tensor_of_an_expert_that_fits_no_plan_is_named(scenes_pipe, published, tmp_path):
    root = shutil.copytree(published[0], tmp_path / "published")
    file = root / "arch1" / "checkpoint-30000" / "unet" / WEIGHTS
    tensors = load_file(file)
    tensors["conv_in.bias"] = tensors["conv_in.bias"][:-1].clone()
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"conv_in\.bias has shape"):
        import_checkpoints(root, scenes_pipe, "base", tmp_path / "out", "some/sentence-model")


def published_choice(router, embeddings, noise):
    """The published routing, with noise: sampled gates, hard but where a module has a depth gate, nearest code."""
    count = int(router.widths.sum())

    def vector(gates):
        rows = []
        for row in gates:
            start, parts = 0, []
            for width, owner in zip(router.widths.tolist(), router.depth_of.tolist()):
                own = row[start : start + width]
                own = (own >= 0.5).float() if owner < 0 else own * row[count + owner]
                parts.append(own / width**0.5)
                start += width
            rows.append(torch.cat([*parts, (row[count:] >= 0.5).float()]))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    logits = embeddings @ router.weight.T + router.bias
    kept = torch.softmax(logits[:, count:], -1).cumsum(-1).flip(-1)
    deep = torch.empty_like(kept)
    deep[:, router.depth_order] = torch.log(kept + 1e-6) - torch.log1p(-(kept - 1e-6))
    gumbel = -torch.log(-torch.log(torch.rand(logits.shape, generator=noise) + 1e-20) + 1e-20)
    gates = torch.sigmoid((torch.cat([logits[:, :count], deep], 1) + gumbel + 3) / 0.4)
    return (vector(gates) @ vector(router.codes).T).argmax(1)


def test_a_prompt_goes_where_the_published_routing_sends_it_most_often():
    """Codes as they were sampled and the mean of the prompt's gates agree more often than both hardened, and about as
    often as any choice can that does not know the noise."""
    noise = torch.Generator().manual_seed(0)
    widths = torch.tensor([32] * 12 + [5, 5, 32] * 4)
    depth_of = torch.tensor([-1, 0, -1, 1] * 6)
    count, depth, inputs, experts, prompts = int(widths.sum()), 2, 16, 6, 60
    weight = torch.randn(count + depth, inputs, generator=noise) / 4
    bias = torch.randn(count + depth, generator=noise) - 3
    centres = torch.randn(experts, inputs, generator=noise)
    embeddings = centres.repeat(10, 1) * 0.5 + torch.randn(prompts, inputs, generator=noise)
    logits = 1.5 * centres @ weight.T + bias
    codes = paper_gates(logits, torch.rand(logits.shape, generator=noise))
    router = CodeRouter(weight, bias, codes, widths, depth_of, torch.tensor([1, 0]))
    draws = torch.stack([published_choice(router, embeddings, noise) for _ in range(60)])
    best = float((draws == draws.mode(0).values).float().mean())

    def agreement(choices):
        return float((draws == torch.tensor(choices)).float().mean())

    ours = agreement([int(router.probabilities(row).argmax()) for row in embeddings])
    hard = gate_vector((codes >= 0.5).float(), widths, depth_of)
    hardened = []
    for row in embeddings:
        mean = row @ weight.T + bias
        deep = torch.empty(depth)
        deep[router.depth_order] = depth_probabilities(mean[count:])
        gates = (open_probability(torch.cat([mean[:count], deep])) >= 0.5).float()
        cosines = torch.nn.functional.normalize(hard, dim=-1) @ gate_vector(gates, widths, depth_of)
        hardened.append(int(cosines.argmax()))
    assert ours > agreement(hardened) + 0.02
    assert ours > best - 0.03


def test_an_empty_plan_of_an_uncut_checkpoint(scenes_pipe, published):
    from hasten.plugins.aptp.importer import plan_from_shapes

    state = dict(scenes_pipe.unet.state_dict())
    assert plan_from_shapes(state, state, published[1], "here") == PruningPlan()
