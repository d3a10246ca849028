"""Low-rank updates: those of a bundle's experts, and a user's LoRA cut to fit a pruned model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hasten.extend import CheckpointError, Structure
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.surgery import channels

__all__ = ["DOWN", "UP", "merge_update", "slice_lora", "update_cut"]

DOWN, UP = "lora_A", "lora_B"
_KEY = re.compile(
    r"(?P<prefix>(?:unet|transformer|base_model\.model)\.)?(?P<module>.+)\.(?P<side>lora_A|lora_B|lora_down|lora_up)"
    r"(?P<rest>(?:\.\w+)?\.weight)\Z"
)


@torch.no_grad()
def merge_update(model: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Add low-rank updates to a model and replace parameters. New tensors are made; shared ones do not change.

    Args:
        model: the pruned denoiser.
        tensors: ``MODULE.lora_A`` (r, in[, kh, kw]) and ``MODULE.lora_B`` (out, r), or whole parameters by name.
        place: file they come from, for messages.

    Raises:
        CheckpointError: a tensor fits no parameter.
    """
    for name, value in tensors.items():
        path, _, kind = name.rpartition(".")
        if kind in (UP, DOWN) and (twin := f"{path}.{UP if kind == DOWN else DOWN}") not in tensors:
            raise CheckpointError(f"{place}: {twin} is missing; get the bundle again")
        if not value.is_floating_point():
            raise CheckpointError(f"{place}: {name} has numbers of type {value.dtype}; get the bundle again")
        if kind == UP:
            continue
        module = _module(model, path, name, place)
        if kind == DOWN:
            up = tensors[f"{path}.{UP}"]
            if value.ndim < 2 or up.shape[1:2] != value.shape[:1] or up[0, 0].numel() != 1:
                raise CheckpointError(
                    f"{place}: {name} {tuple(value.shape)} and its {UP} {tuple(up.shape)} do not form a "
                    f"low-rank update; get the bundle again"
                )
            kind, value = "weight", _product(up, value)
        old = module._parameters.get(kind)
        if old is None or old.shape != value.shape:
            shape = None if old is None else tuple(old.shape)
            raise CheckpointError(
                f"{place}: {name} gives shape {tuple(value.shape)}, the pruned model has {shape}"
            )
        value = value.to(old) + old if name.endswith(f".{DOWN}") else value.to(old)
        module._parameters[kind] = nn.Parameter(value, old.requires_grad)


def slice_lora(
    tensors: Mapping[str, Tensor], model: nn.Module, structure: Structure, plan: PruningPlan
) -> dict[str, Tensor]:
    """Cut a LoRA of the whole model to fit a pruned one, in the same format.

    A layer that produces removed units loses rows of its up matrix, a layer that reads them columns of its down matrix.
    Updates of dropped blocks are left out. Fusing the result equals fusing the whole LoRA before pruning.

    Args:
        tensors: content of a LoRA file of diffusers (``unet.MODULE.lora_A.weight``), or with ``lora_down`` and
            ``lora_up``.
        model: the whole denoiser.
        structure: its units.
        plan: what stays.
    """
    plan = plan.without_whole(structure)
    result = {}
    for name, value in tensors.items():
        match = _KEY.match(name)
        if match is None:
            result[name] = value
            continue
        module = match["module"]
        if any(module == block or module.startswith(f"{block}.") for block in plan.dropped):
            continue
        down = match["side"] in ("lora_A", "lora_down")
        for dimension, index in update_cut(model, structure, plan, module, down=down):
            value = value.index_select(dimension, index.to(value.device))
        result[name] = value
    return result


def update_cut(
    model: nn.Module, structure: Structure, plan: PruningPlan, module: str, *, down: bool
) -> list[tuple[int, Tensor]]:
    """What a plan leaves of the update of a layer: at most one (dimension, channels that stay).

    Args:
        model: the whole denoiser.
        structure: its units.
        plan: what stays.
        module: path of the layer.
        down: whether the tensor is the down matrix (columns are cut) or anything else (rows are cut).
    """
    axis = "in" if down else "out"
    cuts = (cut for name in plan.kept for cut in structure.groups[name].cuts)
    if not any((cut.module, cut.axis) == (module, axis) for cut in cuts):
        return []
    return [(1 if down else 0, channels(structure, plan, model, module, axis))]


def _product(up: Tensor, down: Tensor) -> Tensor:
    flat = up.float().flatten(1) @ down.float().flatten(1)
    return flat.view(len(up), *down.shape[1:])


def _module(model: nn.Module, path: str, name: str, place: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(f"{place}: {name} does not belong to a module of the pruned model") from error
