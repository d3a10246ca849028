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

from hasten._compat import CALL_SLOT, plain_call
from hasten._swap import Swap

__all__ = ["Forward", "closed_gates", "is_compiled", "open_gates"]

Forward = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Computes one forward: ``(inner, args, kwargs) -> output``, where ``inner`` is the module without the gate."""

_lock = threading.Lock()
_current: ContextVar[dict[int, Forward]] = ContextVar("hasten_forwards")


class _Gate:
    """Stands in a module's call slot. ``users`` counts the runs in progress that need it."""

    def __init__(self, module: nn.Module) -> None:
        self._key = id(module)
        self._swap = Swap(module, CALL_SLOT, self)
        self._inner: Callable[..., Any] = self._swap.before or plain_call(module)  # type: ignore[assignment]
        self.users = 0

    @property
    def compiled(self) -> bool:
        """Whether the module has a compiled forward of its own below the gate."""
        return self._swap.before is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = _current.get({}).get(self._key)
        if forward is None:
            return self._inner(*args, **kwargs)
        return forward(self._inner, args, kwargs)

    def remove(self) -> None:
        """Take the gate away, unless it was replaced during the run, for example by ``module.compile()``."""
        self._swap.undo()


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called on this module (a gate in the same slot does not count)."""
    slot = vars(module).get(CALL_SLOT)
    return slot.compiled if isinstance(slot, _Gate) else slot is not None


@contextmanager
def open_gates(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Send the forwards of these modules, as called from this context, through the given functions.

    Gates that are open already stay open: a denoiser and the layers inside it may each have one.
    """
    gates = [_acquire(module) for module in forwards]
    token = _current.set(
        {**_current.get({}), **{id(module): forward for module, forward in forwards.items()}}
    )
    try:
        yield
    finally:
        _current.reset(token)
        for gate in gates:
            _release(gate)


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
        gate = module.__dict__.get(CALL_SLOT)
        if not isinstance(gate, _Gate):
            gate = _Gate(module)
        gate.users += 1
        return gate


def _release(gate: _Gate) -> None:
    with _lock:
        gate.users -= 1
        if gate.users == 0:
            gate.remove()
