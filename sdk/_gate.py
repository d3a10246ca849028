"""One gate per intercepted module, there only while a run is in progress, that hands forwards to the run they
belong to. Denoisers have one, and layers that a technique asked for.

The gate sits in the module instance's ``_compiled_call_impl``, the slot that ``nn.Module.__call__`` asks first and
that ``module.compile()`` fills. It is thereby outside of forward hooks, of accelerate's and diffusers' offloading
hooks (which replace ``forward`` in the middle of a pipeline call) and of any compiled region, and it is dropped by
``nn.Module.__getstate__``, so that a module copied during a run computes with its own weights.

Pipelines may share a denoiser and run in different threads. So the gate counts its users, and looks up the run of
the calling context on every forward; forwards of contexts that are not in a run pass straight through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

__all__ = ["Forward", "closed_gates", "is_compiled", "open_gates"]

Forward = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Computes one forward: ``(inner, args, kwargs) -> output``, where ``inner`` is the module without the gate."""

_SLOT = "_compiled_call_impl"
_lock = threading.Lock()
_current: ContextVar[dict[int, Forward]] = ContextVar("hasten_forwards")


class _Gate:
    """Stands in a module's call slot. ``users`` counts the runs in progress that need it."""

    def __init__(self, module: nn.Module) -> None:
        self._key = id(module)
        self._had = _SLOT in module.__dict__
        self.previous = module.__dict__.get(_SLOT)
        self._inner: Callable[..., Any] = self.previous or module._call_impl
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = _current.get({}).get(self._key)
        if forward is None:
            return self._inner(*args, **kwargs)
        return forward(self._inner, args, kwargs)

    def remove(self, module: nn.Module) -> None:
        if module.__dict__.get(_SLOT) is not self:
            return  # replaced during the run, for example by module.compile(): not ours any more
        if self._had:
            module.__dict__[_SLOT] = self.previous
        else:
            del module.__dict__[_SLOT]


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called on this module (a gate in the same slot does not count)."""
    slot = vars(module).get(_SLOT)
    return (slot.previous if isinstance(slot, _Gate) else slot) is not None


@contextmanager
def open_gates(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Send the forwards of these modules, as called from this context, through the given functions.

    Gates that are open already stay open: a denoiser and the layers inside it may each have one.
    """
    gates = [(module, _acquire(module)) for module in forwards]
    token = _current.set(
        {**_current.get({}), **{id(module): forward for module, forward in forwards.items()}}
    )
    try:
        yield
    finally:
        _current.reset(token)
        for module, gate in gates:
            _release(module, gate)


@contextmanager
def closed_gates() -> Iterator[None]:
    """Forwards called from this context go straight to their modules, whatever run is in progress."""
    token = _current.set({})
    try:
        yield
    finally:
        _current.reset(token)


def _acquire(module: nn.Module) -> _Gate:
    with _lock:
        gate = module.__dict__.get(_SLOT)
        if not isinstance(gate, _Gate):
            # Written past __setattr__, which a torch.compile wrapper redirects to the module it wraps.
            gate = module.__dict__[_SLOT] = _Gate(module)
        gate.users += 1
        return gate


def _release(module: nn.Module, gate: _Gate) -> None:
    with _lock:
        gate.users -= 1
        if gate.users == 0:
            gate.remove(module)
