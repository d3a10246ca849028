"""The user's code inside a run: what a callback calls is not a part of the run it is called from.

A callback may call another pipeline over the same denoiser, a copy of this one for example. Without this its forwards
would be taken for steps of the run in progress.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from hasten._gate import closed_gates

__all__ = ["outside"]


def outside(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline call, the callbacks among them outside of every run."""
    return {
        name: _isolated(value) if name.startswith("callback") and callable(value) else value
        for name, value in arguments.items()
    }


def _isolated(callback: Callable[..., Any]) -> Callable[..., Any]:
    if not hasattr(callback, "tensor_inputs"):
        return _closing(callback)
    cls = type(callback)  # pipelines ask for diffusers' own class of callbacks
    twin: Callable[..., Any] = object.__new__(
        type(cls.__name__, (cls,), {"__call__": _closing(cls.__call__)})
    )
    twin.__dict__ = callback.__dict__  # what it notes is the user's to read
    return twin


def _closing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def closed(*args: Any, **kwargs: Any) -> Any:
        with closed_gates():
            return function(*args, **kwargs)

    return closed
