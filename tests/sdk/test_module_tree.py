"""A copy of a tree of modules has modules of its own and the same tensors."""

import torch
from torch import nn

from hasten.extend import clone_tree


def test_tensors_are_shared_and_modules_are_not():
    inner = nn.Linear(3, 3)
    model = nn.Sequential(inner, nn.BatchNorm1d(3), inner)
    copied = clone_tree(model)
    assert type(copied) is nn.Sequential
    assert copied[0] is copied[2] is not inner
    pairs = zip(
        (*copied.parameters(), *copied.buffers()), (*model.parameters(), *model.buffers()), strict=True
    )
    assert all(one is other for one, other in pairs)
    copied[1] = nn.Identity()
    copied[0].weight = nn.Parameter(torch.zeros(3, 3))
    copied[0].register_forward_hook(lambda *_: None)
    assert isinstance(model[1], nn.BatchNorm1d)
    assert bool(inner.weight.any())
    assert not inner._forward_hooks
