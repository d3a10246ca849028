"""A bundle on disk: ``aptp.json``, ``router.safetensors``, and a plan and perhaps weights for each expert."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.extend import CheckpointError, Structure, UnsupportedError, clone_tree
from hasten.files import inside, read_fields
from hasten.plugins.aptp.cost import CostModel
from hasten.plugins.aptp.lora import DOWN, UP, merge_update
from hasten.plugins.aptp.manifest import (
    MANIFEST,
    REMEDY,
    ExpertEntry,
    ExpertWeights,
    Manifest,
    config_digest,
    file_digest,
)
from hasten.plugins.aptp.plan import PlanFields, PruningPlan
from hasten.plugins.aptp.router import PrototypeRouter, Router
from hasten.plugins.aptp.surgery import nested_order, pruned, reordered, skeleton
from hasten.weights import check_fit, read_tensors

__all__ = ["Bundle", "Expert", "expert_entries", "probe_weights", "save_bundle"]

ROUTER, SHARED, PROBE = "router.safetensors", "shared.safetensors", "base.probe"
_PROBED = 4


@dataclass(frozen=True)
class Expert:
    """One expert: its plan, and the tensors that differ from the base's (``None`` for a plain slice)."""

    plan: PruningPlan
    tensors: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Args:
        manifest: content of ``aptp.json``.
        router: chooses experts.
        experts: in the order of their numbers.
        shared: low-rank update of the whole base, for experts with shared weights.
        probe: some values of the base's weights, float32 (N,); empty if they were not stored.
        place: its folder, for messages.
    """

    manifest: Manifest
    router: Router
    experts: tuple[Expert, ...]
    shared: dict[str, Tensor] | None
    probe: Tensor
    place: str

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Read and verify a bundle.

        Raises:
            CheckpointError: a file is missing, damaged or malformed, or the schema is newer.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        _verify_files(folder, manifest)
        tensors = read_tensors(folder / ROUTER, REMEDY)
        probe = tensors.pop(PROBE, torch.empty(0))
        if probe.ndim != 1 or not probe.is_floating_point():
            raise CheckpointError(f"{folder / ROUTER}: {PROBE} is not a row of numbers; {REMEDY}")
        experts = tuple(_read_expert(folder, i, e.weights) for i, e in enumerate(manifest.experts))
        shared = (
            read_tensors(folder / SHARED, REMEDY)
            if any(e.weights == "shared" for e in manifest.experts)
            else None
        )
        router = _make_router(manifest, tensors, str(folder / ROUTER))
        if router.experts != len(manifest.choices):
            raise CheckpointError(
                f"{folder / ROUTER}: by its {manifest.router.kind} the router has {router.experts} experts, "
                f"the bundle {len(manifest.choices)}; {REMEDY}"
            )
        return cls(manifest, router, experts, shared, probe, str(folder))

    def check_base(self, denoiser: nn.Module, family: str, *, weights: bool = True) -> None:
        """Refuse a denoiser that the experts cannot be cut from.

        Args:
            denoiser: the user's denoiser.
            family: family of the pipeline's adapter.
            weights: also compare some of its weights, to the precision of bfloat16.

        Raises:
            UnsupportedError: it has another family or configuration, or other weights.
        """
        base = self.manifest.base
        if family != self.manifest.family:
            raise UnsupportedError(
                f"the bundle {self.place} is for the family {self.manifest.family!r}, not {family!r}"
            )
        if config_digest(denoiser) != base.config:
            raise UnsupportedError(
                f"the bundle {self.place} was made for the {base.denoiser} of {base.name!r}, and this "
                f"{type(denoiser).__name__} has another configuration; load that base"
            )
        if weights and len(self.probe):
            found = probe_weights(denoiser.parameters())
            if found.shape != self.probe.shape or not torch.allclose(found, self.probe, rtol=0.02, atol=1e-3):
                raise UnsupportedError(
                    f"the bundle {self.place} was made for the weights of {base.name!r}, and these differ; load that "
                    f"base, or set aptp.base_check='config' if a LoRA was fused into it on purpose"
                )

    def own_parameters(self) -> frozenset[str] | None:
        """Names of the base's parameters that experts replace with their own; ``None`` if they replace all."""
        if any(entry.weights == "full" for entry in self.manifest.experts):
            return None
        held = [self.shared or {}, *(expert.tensors or {} for expert in self.experts)]
        names = {name for tensors in held for name in tensors}
        return frozenset(name for name in names if name.rpartition(".")[2] not in (UP, DOWN))

    def source(self, denoiser: nn.Module, structure: Structure, number: int) -> nn.Module:
        """The model that expert ``number`` is cut from: the base, perhaps with the shared update and sorted units."""
        model = denoiser
        if self.manifest.experts[number].weights == "shared":
            model = clone_tree(denoiser)
            merge_update(model, self.shared or {}, f"{self.place}/{SHARED}")
        order = self._order(structure)
        return model if order is None else reordered(model, structure, order)

    def build(self, source: nn.Module, structure: Structure, number: int) -> nn.Module:
        """Expert ``number``, cut from its :meth:`source`, with the base's dtype and device.

        Raises:
            CheckpointError: its tensors do not fit its plan.
            UnsupportedError: its plan does not fit the base.
        """
        expert, kind = self.experts[number], self.manifest.experts[number].weights
        place = f"{self.place}/{_place(number)}"
        if kind == "full":
            return _from_state(source, structure, expert, place)
        plan = expert.plan if self._order(structure) is None else expert.plan.first_units()
        model = pruned(source, structure, plan)
        if kind == "lora":
            merge_update(model, expert.tensors or {}, place)
        return model

    def _order(self, structure: Structure) -> dict[str, tuple[int, ...]] | None:
        """Order of units in which every expert keeps the first ones, so that all share tensors; else ``None``."""
        if any(entry.weights in ("lora", "full") for entry in self.manifest.experts):
            return None
        return nested_order(structure, [expert.plan for expert in self.experts])


@torch.no_grad()
def probe_weights(parameters: Iterable[Tensor]) -> Tensor:
    """A few values of every parameter, float32 (N,), to tell two trained models apart at any precision."""
    picked = [torch.empty(0)]
    for parameter in parameters:
        flat = parameter.detach().flatten()
        index = torch.linspace(0, len(flat) - 1, _PROBED, device=flat.device).long()
        picked.append(flat[index].float().cpu())
    return torch.cat(picked)


def expert_entries(
    costs: CostModel, plans: Sequence[PruningPlan], weights: ExpertWeights, traffic: Sequence[float]
) -> tuple[ExpertEntry, ...]:
    """Manifest entries of experts.

    Args:
        costs: of the base.
        plans: of each expert.
        weights: kind of their weights.
        traffic: share of the calibration prompts routed to each.
    """
    return tuple(
        ExpertEntry(
            weights=weights,
            macs_share=costs.ratio(plan),
            macs=costs.of(plan).macs,
            parameters=costs.of(plan).parameters,
            traffic=float(share),
        )
        for plan, share in zip(plans, traffic, strict=True)
    )


def save_bundle(
    folder: Path,
    manifest: Manifest,
    router: Router,
    experts: tuple[Expert, ...],
    base: nn.Module,
    shared: dict[str, Tensor] | None = None,
) -> Manifest:
    """Write a bundle. The experts' tensors are stored in float16, the router's as they are.

    Args:
        folder: where to write.
        manifest: everything but the digests of the files.
        router: chooses experts.
        experts: in the order of their numbers.
        base: the model they are cut from.
        shared: low-rank update of the base, for experts with shared weights.

    Returns:
        The manifest with the SHA-256 of every file.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    written = {ROUTER: {**router.tensors(), PROBE: probe_weights(base.parameters())}}
    written |= {} if shared is None else {SHARED: _half(shared)}
    for number, expert in enumerate(experts):
        place = folder / "experts" / str(number)
        place.mkdir(parents=True, exist_ok=True)
        (place / "plan.json").write_text(json.dumps(expert.plan.to_dict(), indent=1) + "\n", "utf-8")
        if expert.tensors is not None:
            written[_place(number)] = _half(expert.tensors)
    for name, tensors in written.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
        (folder / name).chmod(0o644)
    names = [*written, *(_place(number, "plan.json") for number in range(len(experts)))]
    files = {name: file_digest(folder / name) for name in sorted(names)}
    complete = manifest.model_copy(update={"files": files})
    complete.write(folder)
    return complete


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().half() for name, value in tensors.items()}


def _verify_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle unless every file that is read is listed, and every listed file exists and is undamaged."""
    kinds = [entry.weights for entry in manifest.experts]
    read = [ROUTER, *(_place(number, "plan.json") for number in range(len(kinds)))]
    read += [_place(number) for number, kind in enumerate(kinds) if kind in ("lora", "full")]
    read += [SHARED] if "shared" in kinds else []
    source = folder / MANIFEST
    for name in read:
        if name not in manifest.files:
            raise CheckpointError(f"{source}: files does not list {name}; {REMEDY}")
    for name, digest in manifest.files.items():
        file = inside(folder, name, source, REMEDY)
        if not file.is_file():
            raise CheckpointError(f"{file} is missing from the bundle; get it again")
        if file_digest(file) != digest:
            raise CheckpointError(
                f"{file} is damaged: its SHA-256 is not the one in aptp.json; get the bundle again"
            )


def _place(number: int, name: str = "weights.safetensors") -> str:
    return f"experts/{number}/{name}"


def _read_expert(folder: Path, number: int, weights: str) -> Expert:
    fields = read_fields(folder / _place(number, "plan.json"), PlanFields, "the pruning plan", REMEDY)
    tensors = read_tensors(folder / _place(number), REMEDY) if weights in ("lora", "full") else None
    return Expert(fields.plan(), tensors)


def _make_router(manifest: Manifest, tensors: dict[str, Tensor], place: str) -> Router:
    if manifest.router.kind == "prototypes":
        return PrototypeRouter.of(tensors, place)
    from hasten.plugins.aptp.published_router import CodeRouter

    return CodeRouter.of(tensors, place)


def _from_state(denoiser: nn.Module, structure: Structure, expert: Expert, place: str) -> nn.Module:
    model = skeleton(denoiser, structure, expert.plan)
    like = next(denoiser.parameters())
    buffers = {name for name, _ in model.named_buffers()}
    wanted = {name: value for name, value in model.state_dict().items() if name not in buffers}
    found = {name: value for name, value in (expert.tensors or {}).items() if name not in buffers}
    check_fit(wanted, found, "its plan", place, REMEDY)
    state = {name: value.to(like.device, like.dtype) for name, value in found.items()}
    model.load_state_dict(state, strict=False, assign=True)
    return model.to(like.device).requires_grad_(like.requires_grad)
