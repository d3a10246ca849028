"""Record what a pipeline asks of its denoisers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Forward:
    """One denoiser forward: which module, its arguments by name, and the scheduler's view of that moment."""

    module: nn.Module
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def recorded(pipe: Any, names: tuple[str, ...]) -> Iterator[list[Forward]]:
    """The forwards of ``pipe``'s denoisers while the context lasts."""
    seen: list[Forward] = []
    modules = [module for name in names if (module := getattr(pipe, name, None)) is not None]

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        seen.append(Forward(module, dict(bound.arguments), output))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def sample_of(output: Any) -> Any:
    """The prediction in a denoiser's output, a tuple or a dataclass."""
    return output[0] if isinstance(output, tuple) else output.sample
