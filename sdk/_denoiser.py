"""The denoiser seam: the chain of handlers around one denoiser's forwards during one run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hasten._clock import Step
from hasten._compat import unwrapped
from hasten._errors import PluginError
from hasten._gate import closed_gates
from hasten._numerics import Computed, Trail, Watch, tensors_of
from hasten._recorder import Row, Stopwatch
from hasten._results import Predictions
from hasten._run import Run

if TYPE_CHECKING:
    from hasten._adapters.base import Moments

__all__ = ["DenoiserCall", "DenoiserHandler", "DenoiserSeam", "parameter_names", "passed"]


@dataclass(frozen=True)
class DenoiserCall:
    """One denoiser forward, as a handler sees it.

    Args:
        denoiser: attribute name of the denoiser on the pipeline.
        module: the denoiser.
        kwargs: every argument of the forward, by name.
        step: where in the run this forward is.
        run: the run it belongs to.
        positional: how many of the leading parameters are passed by position.
        part: which of ``parts`` of the forward this is, where a technique divides forwards.
        parts: into how many parts the forward is divided in this process.
    """

    denoiser: str
    module: nn.Module
    kwargs: Mapping[str, Any]
    step: Step
    run: Run
    positional: int = field(default=0, repr=False)
    part: int = 0
    parts: int = 1

    def as_part(self, part: int, parts: int) -> DenoiserCall:
        """This forward as one of several, whose state is kept apart from step to step."""
        return replace(self, part=part, parts=parts)

    def replace_kwargs(self, changes: Mapping[str, Any]) -> DenoiserCall:
        """This forward with some arguments replaced."""
        return replace(self, kwargs={**self.kwargs, **changes})

    @staticmethod
    def sample(output: Any) -> Any:
        """The prediction inside whatever the denoiser returned: a tensor (a list of them in a few families)."""
        if isinstance(output, torch.Tensor):
            return output
        return output[0] if isinstance(output, tuple) else output.sample

    @staticmethod
    def with_sample(output: Any, sample: object) -> Any:
        """An output of the same kind with the prediction replaced."""
        if isinstance(output, torch.Tensor):
            return sample
        if isinstance(output, tuple):
            return (sample, *output[1:])
        return dataclasses.replace(output, sample=sample)


Proceed = Callable[[DenoiserCall], Any]
DenoiserHandler = Callable[[DenoiserCall, Proceed], Any]


class DenoiserSeam:
    """Everything `hasten` does around the forwards of one denoiser in one run.

    Args:
        name: attribute name of the denoiser on the pipeline.
        module: the denoiser, as the pipeline holds it.
        run: the run in progress.
        layout: how the family packs its latents.
        handlers: owner and handler, outermost first.
        watch: looks for NaN and infinity in outputs.
        around: opened around every computation of the denoiser itself (the attention seam); yields what that notes.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        run: Run,
        layout: Moments,
        handlers: Sequence[tuple[str, DenoiserHandler]],
        watch: Watch | None,
        around: Callable[[DenoiserCall], AbstractContextManager[Any]] = lambda _: nullcontext(),
    ) -> None:
        self.name, self._module, self._run, self._layout = name, module, run, layout
        self._watch = watch
        self._around = around
        self._parameters = parameter_names(module)
        self._trail: Trail = []
        self._predictions = Predictions()
        self._chain: Proceed = self._compute
        for owner, handler in reversed(handlers):
            self._chain = self._link(owner, handler, self._chain)
        self._inner: Callable[..., Any] | None = None
        self._row: Row | None = None
        self._original: Mapping[str, Any] = {}
        self._size: tuple[int, ...] = ()
        self.forwards = 0
        """Forwards that the pipeline asked for."""
        self.computed = 0
        """Times the denoiser itself ran; a technique may have answered all forwards in its place."""

    def forward(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward through the chain; ``inner`` computes the denoiser itself."""
        if self._inner is not None:
            self.computed += 1
            return inner(*args, **kwargs)  # a handler that calls the module itself means the module itself
        if self._watch is not None:
            self._watch.settle()
        bound = dict(zip(self._parameters, args)) | kwargs
        call, row, device = self._begin(bound, len(args))
        self._inner, self._row, self._original = inner, row, bound
        row.stopwatch = Stopwatch(device)
        try:
            output = self._chain(call)
        finally:
            self._inner = None
            self._original = {}
            trail, self._trail = self._trail, []
            row.stopwatch.stop()  # also after an error: the report reads it
        if self._watch is not None:
            self._watch.observe(row, call.sample(output), trail)
        return output

    def _begin(self, bound: dict[str, Any], positional: int) -> tuple[DenoiserCall, Row, torch.device]:
        pipe = self._run.pipe
        size = self._layout.size(pipe, bound)
        latents = next(
            iter(bound.values())
        )  # the first parameter of every denoiser; a list in a few families
        noise = self._layout.level(pipe, bound)
        moment = {"noise": noise, "size": size, "batch": len(latents), "arguments": bound}
        step, row = self._run.advance(self.name, moment)
        self._size = _extent(size)
        self.forwards += 1
        call = DenoiserCall(self.name, self._module, bound, step, self._run, positional)
        return call, row, next(iter(tensors_of(latents))).device

    def _link(self, owner: str, handler: DenoiserHandler, inner: Proceed) -> Proceed:
        def proceed(call: DenoiserCall) -> Any:
            output = handler(call, inner)
            self._predictions.check(owner, call, output)
            self._trail.append((owner, output))
            return output

        return proceed

    def _compute(self, call: DenoiserCall) -> Any:
        """The innermost link: the denoiser itself, called the way the pipeline called it."""
        inner, row = self._inner, self._row
        if inner is None or row is None:
            raise PluginError(
                f"proceed() of a denoiser handler was called after its forward of {self.name} had ended; call it only "
                f"inside of the handler"
            )
        self.computed += 1
        args, kwargs = passed(self._parameters, call.kwargs, call.positional)
        same = call.kwargs is self._original
        row.resolution = self._size if same else _extent(self._layout.size(call.run.pipe, call.kwargs))
        with self._around(call) as computation:
            output = inner(*args, **kwargs)

        def alone() -> Any:
            with torch.no_grad(), closed_gates():
                return inner(*args, **kwargs)

        self._predictions.learn(call, output)
        self._trail.append((Computed(alone, computation.results if computation else ()), output))
        return output


def passed(
    parameters: Sequence[str], bound: Mapping[str, Any], positional: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as the pipeline passes them, ``positional`` of them by position: a user's hooks may look there."""
    kwargs = dict(bound)
    args = []
    for name in parameters[:positional]:
        if name not in kwargs:
            break
        args.append(kwargs.pop(name))
    return tuple(args), kwargs


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the forward's parameters, from the class: an instance's ``forward`` may be an offloading hook."""
    names = tuple(inspect.signature(type(unwrapped(module)).forward).parameters)
    return names[1:]


def _extent(size: Any) -> tuple[int, ...]:
    spatial = (size.height, size.width)
    return spatial if size.frames is None else (size.frames, *spatial)
