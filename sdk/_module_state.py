"""Telling whether a module was changed since: cheaply, and without keeping its old weights in memory.

Compared are the modules themselves, their attributes (flags, processors, hooks, adapters' scales), and of every tensor
its identity, address and version counter. Version counters do not see edits through ``.data``, which is how adapters
are fused and averaged weights are swapped in, so a few values of every tensor are compared, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hasten._compat import CALL_SLOT, HOOK_REGISTRY, MODULE_STORES, hooks_on, version_counter

__all__ = ["ModuleState"]

_SKIPPED = frozenset({MODULE_STORES[2], CALL_SLOT})
"""Children are noted by their path, and a gate stands in the other one while some run is in progress."""
_STORES = MODULE_STORES[:2]
_SAMPLED = 64
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


class ModuleState:
    """What a module was when this was made.

    Args:
        root: the module, with everything below it.
    """

    def __init__(self, root: nn.Module) -> None:
        self._notes = dict(_notes(root))
        self._sample = _sample(root)

    def change(self, root: nn.Module) -> str | None:
        """The first place where ``root`` differs from what was noted (``"mid_block.attn.to_q.weight"``), or ``None``.

        A tensor created in inference mode has no version counter: it always counts as changed.
        """
        now = dict(_notes(root))
        for place, note in now.items():
            if place not in self._notes or not _same(self._notes[place], note):
                return place
        gone = next((place for place in self._notes if place not in now), None)
        if gone is not None:
            return gone
        sample = _sample(root)
        changes = (then.change(sample[kind]) for kind, then in self._sample.items())
        return next((place for place in changes if place is not None), None)


class _TensorNote(NamedTuple):
    tensor: weakref.ref[Tensor]
    """A tensor has one weak reference, whose identity stands for its own."""
    version: object
    address: int
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]


def _notes(root: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in root.named_modules():
        here = f"{path}." if path else ""
        yield f"{here}{type(module).__name__}", (weakref.ref(module), type(module))
        for name, value in vars(module).items():
            if name in _STORES:
                yield from ((f"{here}{key}", _note(held)) for key, held in value.items())
            elif name == HOOK_REGISTRY:
                if hooks := hooks_on(module):
                    yield f"{here}{name}", tuple(hooks.values())
            elif name not in _SKIPPED:
                yield f"{here}{name}", _note(value)


def _note(value: Any) -> Any:
    if isinstance(value, Tensor):
        version = object() if value.is_inference() else version_counter(value)
        return _TensorNote(
            weakref.ref(value), version, _address(value), value.dtype, value.device, _stride(value)
        )
    if isinstance(value, Mapping):
        return tuple(value.keys()), tuple(_note(item) for item in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_note(item) for item in value)
    return value


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a wrapper around several tensors (quantised, sharded) has none
        return 0


def _stride(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()) if tensor.layout is torch.strided else ()


def _same(one: object, other: object) -> bool:
    if one is other:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and isinstance(one, _PLAIN) and bool(one == other)


class _Sample:
    """Some values of tensors of one type on one device, end to end in one tensor."""

    def __init__(self, views: Mapping[str, Tensor]) -> None:
        self._names = [name for name, view in views.items() for _ in range(view.numel())]
        self._values = torch.cat(list(views.values())).view(torch.uint8)

    def change(self, other: _Sample) -> str | None:
        """Name of the first tensor whose values differ, bit by bit: NaN equals itself."""
        if torch.equal(self._values, other._values):
            return None
        place = int((self._values != other._values).nonzero()[0])
        return self._names[place * len(self._names) // len(self._values)]


def _sample(root: nn.Module) -> dict[tuple[torch.device, torch.dtype], _Sample]:
    found: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, tensor in (*root.named_parameters(), *root.named_buffers()):
        plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout is torch.strided
        if not plain or tensor.device.type == "meta" or not tensor.numel():
            continue
        view = tensor.detach()
        while view.ndim > 1:
            view = view.diagonal(0, -2, -1)  # a view at any stride, which meets every row or every column
        view = view.reshape(-1)
        found.setdefault((tensor.device, tensor.dtype), {})[name] = view[:: view.numel() // _SAMPLED + 1]
    return {kind: _Sample(views) for kind, views in found.items()}
