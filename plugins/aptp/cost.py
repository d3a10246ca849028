"""What a plan costs: multiply-accumulates counted exactly from one forward on the meta device, and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hasten.extend import LatentSize, PrunableUnits, Structure
from hasten.plugins.aptp.plan import PruningPlan

__all__ = ["Attended", "Budget", "Cost", "CostModel", "Layer", "Number", "open_gate"]

Number = Tensor | float


class Budget(Protocol):
    """What a budget is a share of: multiply-accumulates, or measured time."""

    def ratio(self, plan: PruningPlan) -> float:
        """Share of the whole model's cost that a plan keeps, in [0, 1]."""

    def soft_ratio(self, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> Tensor:
        """The same (K,) for K sets of gates, differentiable; see :meth:`CostModel.soft_ratio`."""


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


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer: output positions, input and output channels, positions of the kernel."""

    rows: int
    wide_in: int
    wide_out: int
    taps: int


@dataclass(frozen=True)
class Attended:
    """One attention: pairs of query and key tokens, and the width of all heads together."""

    pairs: int
    width: int


class CostModel:
    """Exact costs of the plans of one denoiser at one size.

    Args:
        denoiser: the model; only its configuration is read, never a weight.
        units: capability of its family.
        structure: what can be pruned.
        size: latent extent.
        text: number of text tokens.
    """

    def __init__(
        self, denoiser: Any, units: PrunableUnits, structure: Structure, size: LatentSize, text: int
    ) -> None:
        self.units, self.structure, self.size, self.text = units, structure, size, text
        with torch.device("meta"):
            twin = type(denoiser).from_config(denoiser.config).eval()
        inputs = units.inputs(twin, size, text)
        self.layers, self.attentions = _trace(twin, partial(units.forward, twin, inputs))
        modules = dict(twin.named_modules())
        self._sizes = {
            name: sum(parameter.numel() for parameter in module.parameters(recurse=False))
            for name, module in modules.items()
        }
        self._shapes = {
            name: tuple(module.weight.shape)
            for name, module in modules.items()
            if isinstance(getattr(module, "weight", None), nn.Parameter)
        }
        self._biased = {name for name, module in modules.items() if getattr(module, "bias", None) is not None}

    @cached_property
    def full(self) -> Cost:
        """Cost of the whole model."""
        return self.of(PruningPlan())

    def ratio(self, plan: PruningPlan) -> float:
        """Share of the whole model's multiply-accumulates that a plan keeps."""
        return self.of(plan).macs / self.full.macs

    def of(self, plan: PruningPlan) -> Cost:
        """Cost of a plan."""
        groups = self.structure.groups
        lost = self._lost({name: groups[name].units - len(kept) for name, kept in plan.kept.items()})
        blocks = dict.fromkeys(plan.dropped, 0.0)
        linear, attention = self._linear(lost, blocks), self._attention(lost, blocks)
        return Cost(float(sum(linear)), float(sum(attention)), self._kept_parameters(lost, blocks))

    def soft_ratio(self, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> Tensor:
        """Share of the multiply-accumulates for K sets of gates that are being learned, differentiable.

        Args:
            units: group -> gates (K, units), from 0 to 1.
            blocks: block -> gates (K,), from 0 to 1.

        Returns:
            (K,), float32; equal to :meth:`ratio` where all gates are 0 or 1.
        """
        lost = self._lost({name: (1 - gates).sum(-1) for name, gates in units.items()})
        # In millions, so that float32 holds the terms well.
        terms = [*self._linear(lost, blocks, 1e6), *self._attention(lost, blocks, 1e6)]
        total = torch.zeros(())
        for term in terms:
            total = total + term
        return total / (self.full.macs / 1e6)

    def _lost(self, removed: Mapping[str, Number]) -> dict[tuple[str, str], Number]:
        """(layer, axis) -> channels removed, from the number of units removed of each group."""
        lost: dict[tuple[str, str], Number] = {}
        for name, count in removed.items():
            for cut in self.structure.groups[name].cuts:
                key = (cut.module, cut.axis)
                lost[key] = lost.get(key, 0) + cut.size * count
        return lost

    def _linear(
        self, lost: Mapping[tuple[str, str], Number], blocks: Mapping[str, Number], unit: float = 1.0
    ) -> list[Number]:
        return [
            open_gate(name, blocks)
            * (layer.rows * layer.taps / unit)
            * (layer.wide_in - lost.get((name, "in"), 0))
            * (layer.wide_out - lost.get((name, "out"), 0))
            for name, layer in self.layers.items()
        ]

    def _attention(
        self, lost: Mapping[tuple[str, str], Number], blocks: Mapping[str, Number], unit: float = 1.0
    ) -> list[Number]:
        return [
            open_gate(name, blocks)
            * (2.0 * attended.pairs / unit)
            * (attended.width - lost.get((f"{name}.to_q", "out"), 0))
            for name, attended in self.attentions.items()
        ]

    def _kept_parameters(self, lost: Mapping[tuple[str, str], Number], blocks: Mapping[str, Number]) -> int:
        total = 0
        for name, size in self._sizes.items():
            if not open_gate(name, blocks):
                continue
            shape = self._shapes.get(name)
            rows, columns = (int(lost.get((name, axis), 0)) for axis in ("out", "in"))
            if shape is None or not (rows or columns):
                total += size - rows  # a module without a weight loses entries of a bare vector
                continue
            inner = shape[1] - columns if len(shape) > 1 else 1
            total += (shape[0] - rows) * (inner * math.prod(shape[2:]) + (name in self._biased))
        return total


def open_gate(name: str, blocks: Mapping[str, Number]) -> Number:
    """Product of the gates of the blocks that contain a module, or are it; 1.0 if there are none."""
    result: Number = 1.0
    for block, gate in blocks.items():
        if f"{name}.".startswith(f"{block}."):
            result = result * gate
    return result


def _trace(model: nn.Module, forward: Callable[[], object]) -> tuple[dict[str, Layer], dict[str, Attended]]:
    """Rows of every layer and pairs of every attention in one forward."""
    layers: dict[str, Layer] = {}
    watcher = _Attention()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                stack.enter_context(module.register_forward_hook(_counter(layers, name)))
            elif any(isinstance(getattr(module, name, None), nn.Linear) for name in ("to_q", "to_k")):
                stack.enter_context(watcher.inside(name, module))
        stack.enter_context(watcher)
        stack.enter_context(torch.no_grad())
        forward()
    return layers, watcher.seen


def _counter(layers: dict[str, Layer], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(module: nn.Module, _: object, output: Tensor) -> None:
        wide_out, wide_in, *kernel = module.get_parameter("weight").shape
        earlier = layers[name].rows if name in layers else 0
        layers[name] = Layer(earlier + output.numel() // wide_out, wide_in, wide_out, math.prod(kernel))

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
        with before, module.register_forward_hook(lambda *_: self._leave()):
            yield

    def _leave(self) -> None:
        self._names.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and self._names:
            query, key = ([*args, kwargs.get("query"), kwargs.get("key")])[:2]
            pairs, name = query.shape[-2] * key.shape[-2], self._names[-1]
            earlier = self.seen[name].pairs if name in self.seen else 0
            self.seen[name] = Attended(earlier + pairs, query.shape[1] * query.shape[-1])
        return func(*args, **kwargs)
