"""Removes units from a denoiser: smaller tensors and fewer operations, the same function as masking them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hasten.extend import (
    Cut,
    Structure,
    UnsupportedError,
    clone_tree,
    hooks_on,
    offload_hook,
)
from hasten.plugins.aptp.plan import PruningPlan

__all__ = [
    "channels",
    "nested_order",
    "pruned",
    "refuse_hooks",
    "reordered",
    "skeleton",
    "without_adapters",
]

_CASTING = "layerwise_casting"
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def pruned(model: ModuleT, structure: Structure, plan: PruningPlan) -> ModuleT:
    """A pruned copy of ``model`` that shares every tensor the plan leaves whole.

    Args:
        model: the denoiser; it is not changed.
        structure: its units.
        plan: what stays.

    Returns:
        A model of the same class. If a plan keeps the first units of a group, matrices are views of the whole ones.

    Raises:
        UnsupportedError: the structure does not allow the plan, or the model has hooks of an offloader.
    """
    plan.check(structure)
    refuse_hooks(model)
    plan = plan.without_whole(structure)
    copied = clone_tree(model)
    for name in plan.dropped:
        parent, _, child = name.rpartition(".")
        block = structure.blocks[name].placeholder(copied.get_submodule(name))
        setattr(copied.get_submodule(parent), child, block.train(model.training))
    for cut in _cuts(structure, plan.kept):
        index = channels(structure, plan, copied, cut.module, cut.axis, cut.parameter)
        cut_layer(copied.get_submodule(cut.module), cut.axis, index, cut.parameter)
    for name, units in plan.kept.items():
        for module, attribute, each in structure.groups[name].attributes:
            setattr(copied.get_submodule(module), attribute, each * len(units))
        _follow_packing(copied, structure, name)
    return copied


def nested_order(structure: Structure, plans: Sequence[PruningPlan]) -> dict[str, tuple[int, ...]] | None:
    """An order of the units of every group in which each plan keeps the first ones; ``None`` if none exists."""
    order = {}
    for group in structure.groups.values():
        kept = [set(plan.units(group)) for plan in plans]
        units = sorted(range(group.units), key=lambda unit: -sum(unit in some for some in kept))
        if any(set(units[: len(some)]) != some for some in kept):
            return None
        order[group.id] = tuple(units)
    return order


def reordered(model: ModuleT, structure: Structure, order: Mapping[str, tuple[int, ...]]) -> ModuleT:
    """A copy with the units of every group in another order, which computes the same. Unchanged layers are shared."""
    copied = clone_tree(model)
    moved = {name: units for name, units in order.items() if units != tuple(range(len(units)))}
    for cut in _cuts(structure, moved):
        layer = copied.get_submodule(cut.module)
        axis = 0 if cut.axis == "out" else 1
        index = torch.arange(getattr(layer, cut.parameter).shape[axis])
        for name, units in moved.items():
            for same in structure.groups[name].cuts:
                if (same.module, same.axis, same.parameter) == (cut.module, cut.axis, cut.parameter):
                    places = torch.tensor(units)[:, None] * same.size + torch.arange(same.size)
                    index[same.offset : same.offset + places.numel()] = same.offset + places.flatten()
        cut_layer(layer, cut.axis, index, cut.parameter)
    return copied


def skeleton(model: ModuleT, structure: Structure, plan: PruningPlan) -> ModuleT:
    """The pruned architecture with its parameters on the meta device and its buffers real."""
    copied = clone_tree(model)
    for module in copied.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    parameter.detach().to("meta"), parameter.requires_grad
                )
    return pruned(copied, structure, plan)


def channels(
    structure: Structure,
    plan: PruningPlan,
    model: nn.Module,
    module: str,
    axis: str,
    parameter: str = "weight",
) -> Tensor:
    """Numbers of the channels of a layer that stay, int64 (kept,).

    Args:
        structure: units of the model.
        plan: what stays.
        model: the whole model.
        module: path of the layer.
        axis: ``"out"`` for rows of its weight, ``"in"`` for columns.
        parameter: the weight, or a bare vector of the module by its name.
    """
    whole: Any = getattr(model.get_submodule(module), parameter)
    stays = torch.ones(whole.shape[0 if axis == "out" else 1], dtype=torch.bool)
    for name, units in plan.kept.items():
        group = structure.groups[name]
        gone = set(range(group.units)) - set(units)
        for cut in group.cuts:
            if (cut.module, cut.axis, cut.parameter) == (module, axis, parameter):
                for unit in gone:
                    start = cut.offset + unit * cut.size
                    stays[start : start + cut.size] = False
    return stays.nonzero().flatten()


def cut_layer(layer: Any, axis: str, index: Tensor, parameter: str = "weight") -> None:
    """Keep only some rows (``"out"``) or columns (``"in"``) of a linear, convolution, group norm or bare vector."""
    dimension = 0 if axis == "out" else 1
    layer._parameters[parameter] = _parameter(getattr(layer, parameter), index, dimension)
    if parameter != "weight":
        return
    if axis == "out" and layer.bias is not None:
        layer._parameters["bias"] = _parameter(layer.bias, index, 0)
    if not isinstance(layer, nn.GroupNorm):
        kind = "features" if isinstance(layer, nn.Linear) else "channels"
        setattr(layer, f"{axis}_{kind}", len(index))


def _channels_of(tensor: Tensor, index: Tensor, dimension: int) -> Tensor:
    """Channels ``index`` along ``dimension``; a view if they are the first rows, or the first columns of a matrix."""
    prefix = bool((index == torch.arange(len(index))).all())
    if prefix and (dimension == 0 or tensor.ndim == 2):
        return tensor.narrow(dimension, 0, len(index))
    return tensor.index_select(dimension, index.to(tensor.device if tensor.device.type != "meta" else "cpu"))


def _parameter(parameter: Any, index: Tensor, dimension: int) -> nn.Parameter:
    if parameter.device.type == "meta":
        shape = list(parameter.shape)
        shape[dimension] = len(index)
        return nn.Parameter(parameter.detach().new_empty(shape), parameter.requires_grad)
    kept = _channels_of(parameter.detach(), index, dimension)
    if kept.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        kept = kept.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(kept, parameter.requires_grad)


def _cuts(structure: Structure, groups: Iterable[str]) -> Collection[Cut]:
    """One cut for every axis of a layer that some groups touch, even if two groups share it."""
    cuts = (cut for name in groups for cut in structure.groups[name].cuts)
    return {(cut.module, cut.axis, cut.parameter): cut for cut in cuts}.values()


def _follow_packing(model: nn.Module, structure: Structure, name: str) -> None:
    """Update the sizes that FLUX's single blocks store for the halves of their output layer."""
    for cut in structure.groups[name].consumers:
        layer: Any = model.get_submodule(cut.module)
        if hasattr(layer, "_tp_packed_row_blocks"):
            inner = model.get_submodule(cut.module.rpartition(".")[0]).mlp_hidden_dim
            layer._tp_packed_row_blocks = [layer.in_features - inner, inner]


def refuse_hooks(model: nn.Module) -> None:
    """Refuse a model whose hooks would keep working on the weights before pruning.

    Raises:
        UnsupportedError: naming the module and what put the hook there.
    """
    for path, module in model.named_modules():
        here = f"module {path or 'denoiser'!r}"
        hooks, offloader = hooks_on(module), offload_hook(module)
        if _CASTING in hooks:
            raise UnsupportedError(
                f"{here} stores its weights in another type than it computes in (enable_layerwise_casting), which "
                f"does not apply to pruned weights; load the denoiser without layerwise casting"
            )
        if offloader is not None or hooks:
            kind = ", ".join(hooks) or type(offloader).__name__
            raise UnsupportedError(
                f"{here} carries hooks of an offloader or a cache ({kind}), which would use the original "
                f"weights; prune first, or remove them (pipe.remove_all_hooks(), disable_cache()) and move the "
                f"pipeline with pipe.to(device)"
            )


def without_adapters(model: nn.Module) -> nn.Module:
    """The model without the wrappers of adapters (LoRA and its like) that are fused or switched off.

    Returns:
        The same function over the same tensors; ``model`` itself if it has no adapter.

    Raises:
        UnsupportedError: an adapter is active and not fused.
    """
    wrapped = [path for path, module in model.named_modules() if _is_adapted(module)]
    if not wrapped:
        return model
    copied = clone_tree(model)
    for path in reversed(wrapped):  # the inner of two wrappers first
        layer: Any = model.get_submodule(path)
        if not _computes_its_base(layer):
            raise UnsupportedError(
                f"layer {path!r} carries an adapter that is not fused ({type(layer).__name__}: "
                f"{', '.join(layer.active_adapters)}); call pipe.fuse_lora() and pipe.unload_lora_weights(), and set "
                f"aptp.base_check='config' to accept the changed weights; or give the LoRA to "
                f"hasten.plugins.aptp.lora.slice_lora"
            )
        parent, _, child = path.rpartition(".")
        copied.get_submodule(parent)._modules[child] = copied.get_submodule(f"{path}.base_layer")
    return copied


def _is_adapted(module: nn.Module) -> bool:
    """Whether a layer is wrapped by an adapter of peft."""
    return isinstance(getattr(module, "base_layer", None), nn.Module) and hasattr(module, "merged")


def _computes_its_base(layer: Any) -> bool:
    if layer.merged:
        return not layer.disable_adapters  # switched off, it would unfuse in its next forward
    known = {name for names in layer.adapter_layer_names for name in getattr(layer, names, ())}
    return layer.disable_adapters or not known & set(layer.active_adapters)
