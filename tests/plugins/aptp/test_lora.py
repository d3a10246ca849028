"""A LoRA cut to fit a pruned model is the LoRA fused first and cut then."""

import pytest
import torch

from hasten.extend import clone_tree
from hasten.plugins.aptp.lora import merge_update, slice_lora
from hasten.plugins.aptp.surgery import pruned

from .test_surgery import some


def random_lora(model, rank=3):
    noise = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            shape = module.weight.shape
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, *shape[1:], generator=noise)
            up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=noise)
            tensors[f"{name}.lora_B.weight"] = 0.1 * up
    return tensors


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_sliced_on_pruned_equals_fused_then_sliced(subject, prefix):
    model, structure = subject.denoiser, subject.structure
    plan, lora = some(structure, 11), random_lora(model)

    def update(tensors):
        return {name.removesuffix(".weight"): value for name, value in tensors.items()}

    fused = clone_tree(model)
    merge_update(fused, update(lora), "lora")
    expected = pruned(fused, structure, plan)
    named = {prefix + name: value for name, value in lora.items()}
    sliced = {name.removeprefix(prefix): v for name, v in slice_lora(named, model, structure, plan).items()}
    found = pruned(model, structure, plan)
    merge_update(found, update(sliced), "lora")
    theirs = expected.state_dict()
    for name, value in found.state_dict().items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name
    assert sum(v.numel() for v in sliced.values()) < sum(v.numel() for v in lora.values())
