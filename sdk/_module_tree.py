"""Copying a tree of modules without copying its tensors."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

from hasten._compat import HOOK_REGISTRY, MODULE_HOOKS, MODULE_STORES

if TYPE_CHECKING:
    from torch import nn

__all__ = ["clone_tree"]

ModuleT = TypeVar("ModuleT", bound="nn.Module")


def clone_tree(model: ModuleT) -> ModuleT:
    """A copy of a tree of modules that shares all parameters and buffers with it.

    Modules can be replaced in the copy, and hooks and attributes set on it, without a change of ``model``. A module
    that occurs twice in the tree does so in the copy. Hooks of torch are kept, those of diffusers are not.
    """
    made: dict[nn.Module, nn.Module] = {}

    def clone(module: nn.Module) -> nn.Module:
        if module in made:
            return made[module]
        twin = made[module] = copy.copy(module)
        vars(twin).pop(HOOK_REGISTRY, None)  # it would still point to the original
        for name in (*MODULE_STORES, *MODULE_HOOKS):
            if name in vars(module):
                vars(twin)[name] = copy.copy(vars(module)[name])
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else clone(child)
        return twin

    clone(model)
    return made[model]  # type: ignore[return-value]
