"""A pipeline with the adapter of its family and its denoisers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hasten._compat import execution_device
from hasten._errors import UnsupportedError
from hasten._pipeline import Pipeline
from hasten._plugins import host

if TYPE_CHECKING:
    from torch import nn

    from hasten._adapters.base import Adapter, LatentLayout, Moments
    from hasten._adapters.control import ControlNetwork

__all__ = ["Target"]

CapabilityT = TypeVar("CapabilityT")


@dataclass(frozen=True)
class Target:
    """A pipeline and the adapter of its family. Reading its attributes never changes the pipeline."""

    pipe: Pipeline
    adapter: Adapter
    verified: bool = True
    """Whether the adapter lists the pipeline's class, not only the class of its denoiser."""

    @classmethod
    def of(cls, pipe: Any, *, allow_unverified: bool = False) -> Target:
        """The target for ``pipe``.

        Args:
            pipe: the pipeline.
            allow_unverified: use the class of its denoiser if the class of the pipeline is unknown.

        Raises:
            UnsupportedError: its family is unknown or refused.
        """
        registry = host().registry
        return cls(pipe, registry.adapter(pipe, allow_unverified=allow_unverified), registry.knows(pipe))

    @property
    def name(self) -> str:
        """Class name of the pipeline."""
        return type(self.pipe).__name__

    @property
    def denoisers(self) -> dict[str, nn.Module]:
        """Attribute name to module, for the current denoisers of the pipeline (a compiled wrapper is not unwrapped)."""
        found = {name: getattr(self.pipe, name, None) for name in self.adapter.denoisers}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def control_network(self) -> tuple[ControlNetwork, nn.Module] | None:
        """How the family runs its control network and the network itself, ``None`` if the pipeline has none now."""
        from hasten._adapters.control import ControlNetwork

        network = self.adapter.capability(ControlNetwork)
        module = None if network is None else getattr(self.pipe, network.module, None)
        return None if network is None or module is None else (network, module)

    @property
    def device(self) -> str:
        """Execution device of the pipeline, also if its modules are offloaded."""
        return str(execution_device(self.pipe) or "")

    @property
    def dtype(self) -> str:
        """Number format of the first denoiser's first floating-point weight."""
        weights = (
            p for module in self.denoisers.values() for p in module.parameters() if p.is_floating_point()
        )
        return str(next(weights).dtype).removeprefix("torch.") if self.denoisers else ""

    def capability(self, kind: type[CapabilityT], technique: str = "") -> CapabilityT:
        """The family's implementation of a capability class.

        Args:
            kind: the class.
            technique: the technique that needs it, for the message.

        Raises:
            UnsupportedError: the adapter has none.
        """
        found = self.adapter.capability(kind)
        if found is None:
            who = f"{technique} refuses this {self.name}" if technique else self.name
            reason = (self.adapter.missing or {}).get(kind)
            if reason is not None:
                raise UnsupportedError(f"{who}: it needs {kind.__name__}, and {reason}")
            reason = getattr(kind, "without", "")
            raise UnsupportedError(
                f"{who}: {reason + '. The' if reason else 'the'} adapter of family "
                f"{self.adapter.family!r} has no {kind.__name__}, which is needed "
                f"here. Write a subclass of {kind.__module__}.{kind.__qualname__} and add an instance of it to "
                f"the adapter's capabilities."
            )
        return found

    @property
    def layout(self) -> LatentLayout:
        """Latent layout of this family.

        Raises:
            UnsupportedError: the adapter has no layout.
        """
        from hasten._adapters.base import LatentLayout

        return self.capability(LatentLayout)

    @property
    def moments(self) -> Moments:
        """Capability that the run clock reads: the family's latent layout or its scale schedule.

        Raises:
            UnsupportedError: the adapter has neither.
        """
        from hasten._adapters.base import LatentLayout, ScaleSchedule

        found = self.adapter.capability(ScaleSchedule)
        return found or self.capability(LatentLayout)

    def call_arguments(self, **given: Any) -> dict[str, Any]:
        """Arguments of a pipeline call by name, the pipeline's defaults filled in.

        Raises:
            TypeError: the pipeline has no such argument.
        """
        return self.bind((), given)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Like :meth:`call_arguments`, for arguments given by position too."""
        signature = inspect.signature(type(self.pipe).__call__)
        bound = signature.bind_partial(self.pipe, *args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for index, (name, value) in enumerate(bound.arguments.items()):
            if index == 0:  # self
                continue
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = value
        return arguments
