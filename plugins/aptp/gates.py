"""Gates that scale units and blocks. With gates of 0 and 1 the result equals that of the pruned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from hasten.extend import Cut, Structure

__all__ = ["gated"]


@contextmanager
def gated(
    model: nn.Module, structure: Structure, units: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
) -> Iterator[None]:
    """Forwards of ``model`` use gates inside the ``with`` block.

    Args:
        model: the denoiser.
        structure: its units.
        units: group -> gates from 0 to 1, (units,), or (B, units) with one row for each sample of the batch.
        blocks: block -> gate from 0 to 1, () or (B,); 0 replaces the block's output by its input.
    """
    with ExitStack() as stack:
        for name, gate in units.items():
            for cut in structure.groups[name].consumers:
                hook = _scale_columns(cut, gate)
                stack.enter_context(model.get_submodule(cut.module).register_forward_pre_hook(hook))
        for name, gate in blocks.items():
            module = model.get_submodule(name)
            hook = _fade(structure.blocks[name].placeholder(module), gate)
            stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        yield


def _scale_columns(cut: Cut, gate: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
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


def _fade(placeholder: nn.Module, gate: Tensor) -> Callable[..., Any]:
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
