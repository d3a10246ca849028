"""Gates: units and blocks switched on and off, or faded, where they are read. Equal to surgery when they are 0 or 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import Cut, Structure
from hasten.plugins.aptp.plan import PruningPlan

__all__ = ["gated", "masks"]


def masks(structure: Structure, plan: PruningPlan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gates of 0 and 1 for a plan: by group (units,), and by block ()."""
    plan.check(structure)
    units = {}
    for name, kept in plan.kept.items():
        gate = torch.zeros(structure.groups[name].units)
        gate[list(kept)] = 1
        units[name] = gate
    return units, {name: torch.zeros(()) for name in plan.dropped}


@contextmanager
def gated(
    model: nn.Module, structure: Structure, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
) -> Iterator[None]:
    """Run ``model`` with gates.

    Args:
        model: the denoiser.
        structure: its units.
        units: group id -> gates (units,), or (B, units) with one row for each sample of the batch.
        blocks: block id -> gate (), or (B,); 0 lets the input pass.
    """
    with ExitStack() as stack:
        for name, gate in units.items():
            for cut in structure.groups[name].consumers:
                hook = _scale_columns(cut, gate)
                stack.callback(model.get_submodule(cut.module).register_forward_pre_hook(hook).remove)
        for name, gate in blocks.items():
            module = model.get_submodule(name)
            hook = _fade(structure.blocks[name].placeholder(module), gate)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _scale_columns(cut: Cut, gate: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        axis = 1 if hidden.ndim == 4 else hidden.ndim - 1
        wide = gate.to(hidden).repeat_interleave(cut.size, dim=-1)
        end = cut.offset + wide.shape[-1]
        rest = hidden.shape[axis] - end
        wide = nn.functional.pad(wide, (cut.offset, rest), value=1.0)
        shape = [1] * hidden.ndim
        shape[axis] = wide.shape[-1]
        if wide.ndim == 2:
            shape[0] = len(wide)
        return (hidden * wide.view(shape), *args[1:])

    return hook


def _fade(placeholder: nn.Module, gate: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        passed = placeholder(*args, **kwargs)
        if isinstance(output, Tensor):
            return _mix(passed, output, gate)
        pairs = zip(passed, output)
        return tuple(out if out is None else _mix(inner, out, gate) for inner, out in pairs)

    return hook


def _mix(passed: Tensor, output: Tensor, gate: Tensor) -> Tensor:
    shaped = gate.to(output).view(-1, *[1] * (output.ndim - 1)) if gate.ndim else gate.to(output)
    # Not passed + gate * (output - passed): a gate of 0 or 1 has to be exact.
    return (1 - shaped) * passed + shaped * output
