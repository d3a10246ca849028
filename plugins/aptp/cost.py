"""What a plan costs: multiply-accumulates counted exactly from one shape-only forward, parameters, and the ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hasten.extend import LatentSize, PrunableUnits, Structure
from hasten.plugins.aptp.plan import PruningPlan

__all__ = ["Attended", "Budget", "Cost", "CostModel", "Layer", "open_gate"]


class Budget(Protocol):
    """What a budget is set on: multiply-accumulates, or measured time."""

    def ratio(self, plan: PruningPlan) -> float:
        """Share of the whole model's that a plan keeps."""

    def soft_ratio(self, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> Tensor:
        """The same (K,) for gates (K, units) of groups and (K,) of blocks, differentiable."""


@dataclass(frozen=True)
class Cost:
    """Of one forward of one sample.

    Args:
        macs_linear: multiply-accumulates of convolutions and linear layers.
        macs_attention: of query times key, and of weights times value.
        parameters: of the denoiser.
    """

    macs_linear: float
    macs_attention: float
    parameters: int

    @property
    def macs(self) -> float:
        """All multiply-accumulates."""
        return self.macs_linear + self.macs_attention

    def to_dict(self) -> dict[str, float]:
        """JSON-ready fields, the total among them."""
        return {**asdict(self), "macs": self.macs}


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer: output positions, in- and output channels, taps of the kernel."""

    rows: int
    wide_in: int
    wide_out: int
    taps: int

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the whole layer."""
        return float(self.rows) * self.wide_in * self.wide_out * self.taps


@dataclass(frozen=True)
class Attended:
    """One attention: (query tokens, key tokens) of each call, and the width of all heads."""

    pairs: int
    width: int

    @property
    def macs(self) -> float:
        """Multiply-accumulates of both products."""
        return 2.0 * self.pairs * self.width


class CostModel:
    """Exact costs of the plans of one denoiser at one size.

    Args:
        denoiser: the model; only its configuration is used, and no weight is read.
        units: the family's capability.
        structure: its units.
        size: extent of the latents.
        text: text tokens.
    """

    def __init__(
        self, denoiser: Any, units: PrunableUnits, structure: Structure, size: LatentSize, text: int
    ) -> None:
        self.structure, self.size, self.text = structure, size, text
        with torch.device("meta"):
            twin = type(denoiser).from_config(denoiser.config).eval()
        inputs = units.inputs(twin, size, text)
        self.layers, self.attentions = _trace(twin, partial(units.forward, twin, inputs))
        self._sizes = {
            name: _parameters(module) for name, module in twin.named_modules() if _parameters(module)
        }
        self._shapes = {
            name: tuple(module.weight.shape)
            for name, module in twin.named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter)
        }
        self._biased = {n for n, m in twin.named_modules() if getattr(m, "bias", None) is not None}

    @cached_property
    def full(self) -> Cost:
        """The whole model."""
        return self.of(PruningPlan())

    def ratio(self, plan: PruningPlan) -> float:
        """Share of the whole model's multiply-accumulates that a plan keeps."""
        return self.of(plan).macs / self.full.macs

    def of(self, plan: PruningPlan) -> Cost:
        """Cost of a plan."""
        lost = self._lost(plan)
        gone = tuple(f"{name}." for name in plan.dropped)
        linear = sum(
            layer.rows
            * layer.taps
            * (layer.wide_in - lost.get((n, "in"), 0))
            * (layer.wide_out - lost.get((n, "out"), 0))
            for n, layer in self.layers.items()
            if not f"{n}.".startswith(gone)
        )
        attention = sum(
            2.0 * attended.pairs * (attended.width - lost.get((f"{n}.to_q", "out"), 0))
            for n, attended in self.attentions.items()
            if not f"{n}.".startswith(gone)
        )
        return Cost(float(linear), float(attention), self._kept_parameters(lost, gone))

    def soft_ratio(self, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> Tensor:
        """Share of the multiply-accumulates for gates that are being learned, differentiable, many codes at a time.

        Args:
            units: group id -> gates (K, units).
            blocks: block id -> gates (K,).

        Returns:
            (K,); equal to :meth:`ratio` where all gates are 0 or 1.
        """
        lost: dict[tuple[str, str], Tensor] = {}
        for name, gates in units.items():
            removed = (1 - gates).sum(-1)
            for cut in self.structure.groups[name].cuts:
                key = (cut.module, cut.axis)
                lost[key] = lost.get(key, torch.zeros_like(removed)) + cut.size * removed
        total: Tensor = torch.zeros(())
        for name, layer in self.layers.items():
            wide_in = layer.wide_in - lost.get((name, "in"), 0)
            wide_out = layer.wide_out - lost.get((name, "out"), 0)
            total = total + open_gate(name, blocks) * (layer.rows * layer.taps / 1e6) * wide_in * wide_out
        for name, attended in self.attentions.items():
            width = attended.width - lost.get((f"{name}.to_q", "out"), 0)
            total = total + open_gate(name, blocks) * (2.0 * attended.pairs / 1e6) * width
        return total / (self.full.macs / 1e6)

    def _lost(self, plan: PruningPlan) -> dict[tuple[str, str], int]:
        """(layer, axis) -> channels removed."""
        lost: dict[tuple[str, str], int] = {}
        for name, kept in plan.kept.items():
            group = self.structure.groups[name]
            for cut in group.cuts:
                key = (cut.module, cut.axis)
                lost[key] = lost.get(key, 0) + cut.size * (group.units - len(kept))
        return lost

    def _kept_parameters(self, lost: Mapping[tuple[str, str], int], gone: tuple[str, ...]) -> int:
        total = 0
        for name, size in self._sizes.items():
            if f"{name}.".startswith(gone):
                continue
            shape = self._shapes.get(name)
            rows, columns = lost.get((name, "out"), 0), lost.get((name, "in"), 0)
            if shape is None or not (rows or columns):
                total += size - rows  # a module without a weight loses entries of a bare vector
                continue
            inner = 1 if len(shape) == 1 else shape[1]
            rest = 1
            for extent in shape[2:]:
                rest *= extent
            total += (shape[0] - rows) * (inner - (columns if len(shape) > 1 else 0)) * rest
            total += shape[0] - rows if name in self._biased else 0
        return total


def open_gate(name: str, blocks: Mapping[str, Tensor]) -> Tensor | float:
    """Product of the gates of all blocks that a module is, or lies in."""
    result: Tensor | float = 1.0
    for block, gate in blocks.items():
        if f"{name}.".startswith(f"{block}."):
            result = result * gate
    return result


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _trace(model: nn.Module, forward: Callable[[], Any]) -> tuple[dict[str, Layer], dict[str, Attended]]:
    """Rows of every layer and pairs of every attention in one forward."""
    layers: dict[str, Layer] = {}
    watcher = _Attention()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                handle = module.register_forward_hook(_counter(layers, name))
                stack.callback(handle.remove)
            elif any(isinstance(getattr(module, name, None), nn.Linear) for name in ("to_q", "to_k")):
                stack.enter_context(watcher.inside(name, module))
        stack.enter_context(watcher)
        stack.enter_context(torch.no_grad())
        forward()
    return layers, watcher.seen


def _counter(layers: dict[str, Layer], name: str) -> Any:
    def hook(module: Any, _: Any, output: torch.Tensor) -> None:
        wide_out, wide_in, *kernel = module.weight.shape
        taps = 1
        for extent in kernel:
            taps *= extent
        earlier = layers[name].rows if name in layers else 0
        layers[name] = Layer(earlier + output.numel() // wide_out, wide_in, wide_out, taps)

    return hook


class _Attention(TorchFunctionMode):
    """Sees attention calls and knows the layer that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Attended] = {}
        self._names: list[str] = []

    @contextmanager
    def inside(self, name: str, module: nn.Module) -> Iterator[None]:
        """Calls from ``module`` count for ``name``."""
        before = module.register_forward_pre_hook(lambda *_: self._names.append(name))
        after = module.register_forward_hook(lambda *_: self._leave())
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _leave(self) -> None:
        self._names.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and self._names:
            query, key = ([*list(args), kwargs.get("query"), kwargs.get("key")])[:2]
            pairs, name = query.shape[-2] * key.shape[-2], self._names[-1]
            earlier = self.seen[name].pairs if name in self.seen else 0
            self.seen[name] = Attended(earlier + pairs, query.shape[1] * query.shape[-1])
        return func(*args, **kwargs)
