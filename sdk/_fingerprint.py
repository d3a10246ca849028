"""A structural fingerprint of a pipeline: what attaching could have changed and restoring has to bring back.

Compare a restored pipeline with a *control* that was given the same calls, since a stock run adds attributes of its
own. Weights' values are left out; equal output at a fixed seed covers them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from hasten._compat import MODULE_HOOKS, MODULE_STORES
from hasten._pipeline import Pipeline

__all__ = ["Fingerprint", "fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """Place (``"transformer.proj_out.forward"``) to description. Equal structures have equal fingerprints."""

    entries: Mapping[str, str]

    def diff(self, other: Fingerprint) -> str:
        """Every difference, one a line: ``-`` only here, ``+`` only in ``other``, ``~`` described differently."""
        lines = []
        for place in sorted({*self.entries, *other.entries}):
            mine, theirs = self.entries.get(place), other.entries.get(place)
            if theirs is None:
                lines.append(f"- {place}: {mine}")
            elif mine is None:
                lines.append(f"+ {place}: {theirs}")
            elif mine != theirs:
                lines.append(f"~ {place}: {mine} -> {theirs}")
        return "\n".join(lines)


def fingerprint(pipe: Pipeline) -> Fingerprint:
    """Describe the classes, instance attributes, processors and hooks of a pipeline and of every module in it."""
    entries = dict(_instance("pipeline", pipe))
    for name, component in vars(pipe).items():
        if isinstance(component, nn.Module):
            for path, module in component.named_modules(remove_duplicate=False):
                entries.update(_module(f"{name}.{path}" if path else name, module))
        elif hasattr(component, "__dict__"):
            entries.update(_instance(name, component))
    return Fingerprint(entries)


def _instance(place: str, thing: object) -> Iterator[tuple[str, str]]:
    lineage = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(thing).__mro__)
    yield place, " < ".join(lineage)
    for name, value in getattr(thing, "__dict__", {}).items():
        yield f"{place}.{name}", _describe(value)


def _module(place: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    yield from _instance(place, module)
    for name, parameter in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield f"{place}.{name}", _describe(parameter)
    yield f"{place} (order)", ", ".join(name for store in MODULE_STORES for name in vars(module)[store])
    for kind in MODULE_HOOKS:
        hooks = getattr(module, kind, None) or {}
        values = hooks.values() if isinstance(hooks, dict) else hooks
        yield f"{place} ({kind})", ", ".join(_describe(hook) for hook in values)
    processor = getattr(module, "processor", None)
    if processor is not None and not isinstance(processor, nn.Module):
        yield from _instance(f"{place}.processor", processor)


def _describe(value: object) -> str:
    """Type, plus what tells one value of it from another without depending on addresses."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        return f"{kind} {tuple(value.shape)} {value.dtype} {value.device}"
    if isinstance(value, (bool, str)) or value is None:
        return f"{kind} {value!r}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{kind} {value.__module__}.{value.__qualname__}"
    return kind
