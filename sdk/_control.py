"""The control seam: the chain of handlers around the forwards of a control network in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from hasten._denoiser import parameter_names, passed
from hasten._run import Run

if TYPE_CHECKING:
    from hasten._adapters.base import LatentSize
    from hasten._adapters.control import ControlNetwork
    from hasten._adapters.layouts import ImageLayout
    from hasten.schedules.noise import NoiseLevel

__all__ = ["ControlCall", "ControlHandler", "ControlSeam"]


@dataclass(frozen=True)
class ControlCall:
    """One forward of a control network, as a handler sees it. The denoiser's forward follows.

    Args:
        network: how the family runs it.
        module: the network.
        kwargs: every argument of the forward, by name.
        noise: level of the solver's latents.
        size: extent of the solver's latents.
        run: the run it belongs to; its step is still the one before.
        positional: how many of the leading parameters are passed by position.
    """

    network: ControlNetwork
    module: nn.Module
    kwargs: Mapping[str, Any]
    noise: NoiseLevel
    size: LatentSize
    run: Run
    positional: int = field(default=0, repr=False)

    def replace_kwargs(self, changes: Mapping[str, Any]) -> ControlCall:
        """This forward with some arguments replaced."""
        return replace(self, kwargs={**self.kwargs, **changes})


Proceed = Callable[[ControlCall], Any]
ControlHandler = Callable[[ControlCall, Proceed], Any]


class ControlSeam:
    """Everything `hasten` does around the forwards of one control network in one run.

    Args:
        network: how the family runs it.
        module: the network, as the pipeline holds it.
        run: the run in progress.
        layout: how the family packs its latents.
        handlers: owner and handler, outermost first.
    """

    def __init__(
        self,
        network: ControlNetwork,
        module: nn.Module,
        run: Run,
        layout: ImageLayout,
        handlers: Sequence[tuple[str, ControlHandler]],
    ) -> None:
        self._network, self._module, self._run, self._layout = network, module, run, layout
        self._handlers = tuple(handlers)
        self._parameters = parameter_names(module)

    def forward(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward through the chain; ``inner`` computes the network itself."""
        bound = dict(zip(self._parameters, args)) | kwargs
        pipe, layout = self._run.pipe, self._layout
        size = self._network.size(layout, pipe, bound)
        noise = self._network.level(layout, pipe, bound)

        def compute(call: ControlCall) -> Any:
            fed = self._network.size(layout, pipe, call.kwargs)
            self._run.control_size = None if fed == size else fed
            ordered, named = passed(self._parameters, call.kwargs, call.positional)
            return inner(*ordered, **named)

        chain: Proceed = compute
        for _, handler in reversed(self._handlers):
            chain = _link(handler, chain)
        return chain(ControlCall(self._network, self._module, bound, noise, size, self._run, len(args)))


def _link(handler: ControlHandler, inner: Proceed) -> Proceed:
    return lambda call: handler(call, inner)
