"""The attention seam: every scaled-dot-product attention inside an accelerated forward, with the name of its layer.

A ``TorchFunctionMode`` sees the calls, because half of the model families never reach diffusers' dispatcher. It is
active only in the attention layers of the denoiser's own computation in this run and thread. Processors that the user
set to another backend would bypass it: for the run they compute natively up to the seam, and the dense path of a
handler's ``proceed`` goes to the user's backend. In a compiled denoiser an operator in the graph takes the mode's place
(:mod:`hasten._compiled`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hasten._backends import native_backend
from hasten._compat import unwrapped
from hasten._errors import UnsupportedError, suggestion
from hasten._gate import is_compiled
from hasten._results import check_attention
from hasten._segments import Segment, attend_with_lse

if TYPE_CHECKING:
    from hasten._clock import Step
    from hasten._denoiser import DenoiserCall
    from hasten._run import Run
    from hasten._seams import AttentionEntry
    from hasten._target import Target

__all__ = ["AttentionCall", "AttentionHandler", "AttentionSeam", "attention_layers", "check_layers"]


class _Given(NamedTuple):
    """The arguments of ``torch.nn.functional.scaled_dot_product_attention``."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


@dataclass(frozen=True)
class AttentionCall:
    """One attention computation, as a handler sees it. Change it with ``dataclasses.replace``.

    Args:
        layer: qualified name, beginning with the denoiser (``"transformer.transformer_blocks.0.attn"``).
        module: the attention module.
        query: (B, heads, tokens, dim), after normalisation and rotary embedding.
        key: (B, heads, tokens, dim).
        value: (B, heads, tokens, dim).
        mask: additive or boolean mask, broadcast over (B, heads, queries, keys).
        dropout: probability.
        causal: whether a query sees only keys at or before its own position.
        scale: factor of the scores; ``None`` is ``dim ** -0.5``.
        grouped: whether keys and values have fewer heads than queries.
        arguments: those of the denoiser's forward in progress, as it is computed (a technique may have resized them).
        step: where in the run this is.
        run: the run.
        part: which of ``parts`` of the forward this is, where a technique divides forwards.
        parts: into how many parts the forward is divided in this process.
        segment: what this call computes of its layer, where a technique divides the layer; ``None`` for all of it.
        backend: name of the attention backend that ``proceed`` computes with where the user chose another than
            torch's own function, else ``None``.
    """

    layer: str
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    dropout: float
    causal: bool
    scale: float | None
    grouped: bool
    arguments: Mapping[str, Any]
    step: Step
    run: Run
    part: int = 0
    parts: int = 1
    segment: Segment | None = None
    backend: str | None = None


Proceed = Callable[[AttentionCall], Tensor]
AttentionHandler = Callable[[AttentionCall, Proceed], Tensor]


@dataclass
class _Computation:
    """One computation of the denoiser that is being intercepted. Several may be in progress, one per thread."""

    seam: AttentionSeam
    forward: DenoiserCall
    inside: list[str] = field(default_factory=list)
    """Names of the attention layers in progress, the innermost last."""
    results: list[tuple[str, str, Tensor]] = field(default_factory=list)
    """Owner, layer and sum of every handler's result, where several techniques have handlers."""
    entered: set[str] = field(default_factory=set)
    mode: _Mode = field(init=False)
    """On while a layer is in progress: every function of torch costs a call of Python under it."""
    hit: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.mode = _Mode(self)
        self._on = False

    def enter(self, layer: str) -> None:
        """A layer begins."""
        if not self._on:
            self.mode.__enter__()
            self._on = True
        self.inside.append(layer)
        self.entered.add(layer)

    def leave(self) -> None:
        """No layer is in progress any more, also after an exit or an interrupt, for which torch runs no hooks."""
        self.inside.clear()
        if self._on:
            self._on = False
            self.mode.__exit__(None, None, None)


_active: ContextVar[_Computation | None] = ContextVar("hasten_attention", default=None)


def attention_layers(target: Target) -> dict[str, nn.Module]:
    """Every attention layer of every denoiser: the modules that hold an attention processor, by qualified name."""
    return {
        f"{denoiser}.{name}": module
        for denoiser, root in target.denoisers.items()
        for name, module in unwrapped(root).named_modules()
        if hasattr(module, "set_processor") and getattr(module, "processor", None) is not None
    }


def is_traced(target: Target) -> bool:
    """Whether a denoiser of the pipeline is compiled, wholly or in parts."""
    roots = ((unwrapped(denoiser), denoiser) for denoiser in target.denoisers.values())
    return any(root is not denoiser or any(map(is_compiled, root.modules())) for root, denoiser in roots)


def refuse_compiled(target: Target) -> None:
    """Refuse denoisers that are compiled, wholly or in parts, for techniques that stand around modules.

    A handler is Python that depends on the step. Traced into a graph, it would compile anew on every step, or be
    frozen at the first one.

    Raises:
        UnsupportedError: a denoiser, or a module of it, is compiled.
    """
    if is_traced(target):
        names = ", ".join(target.denoisers)
        raise UnsupportedError(
            f"layers cannot be intercepted in {target.name}.{names}, because it is compiled with "
            f"torch.compile; load it without compiling, or enable only techniques that do not change "
            f"its layers"
        )


def check_layers(target: Target, layers: frozenset[str] | None) -> None:
    """Refuse names that are no attention layers.

    Raises:
        UnsupportedError: a named layer does not exist, or there is no attention layer at all.
    """
    known = attention_layers(target)
    if not known:
        raise UnsupportedError(
            f"no denoiser of {target.name} has a module with an attention processor, so its attention "
            f"layers cannot be distinguished; the attention seam needs modules with 'set_processor' "
            f"and 'processor'"
        )
    for name in sorted(layers or ()):
        if name not in known:
            raise UnsupportedError(
                f"{target.name} has no attention layer {name!r}{suggestion(name, known)} "
                f"It has {len(known)}, the first is {next(iter(known))!r}."
            )


class AttentionSeam:
    """Attention handlers of one run.

    Args:
        target: the pipeline.
        entries: owner and handler, outermost first.
    """

    def __init__(self, target: Target, entries: Sequence[tuple[str, AttentionEntry]]) -> None:
        self._target = target
        everything = attention_layers(target)
        self._owners = tuple(dict.fromkeys(owner for owner, _ in entries))
        self._chains: dict[str, Proceed] = {}
        for layer in everything:
            chosen = [(owner, e.handler) for owner, e in entries if e.layers is None or layer in e.layers]
            if chosen:
                self._chains[layer] = self._chain(chosen)
        self._layers = {layer: everything[layer] for layer in self._chains}
        self._names = {module: layer for layer, module in self._layers.items()}
        self._dense_backends: dict[str, Any] = {}
        self._ever_hit: set[str] = set()
        self._traced = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Layer names and native processors, for one run."""
        self._traced = is_traced(self._target)  # it may have been compiled since the technique was attached
        with ExitStack() as stack:
            for layer, module in self._layers.items():
                chosen = stack.enter_context(native_backend(module.processor))
                if chosen is not None:
                    self._dense_backends[layer] = chosen
                if self._traced:
                    from hasten._compiled import numbered

                    stack.enter_context(numbered(module))
                    continue
                before, after = self._naming_hooks(layer)
                stack.callback(module.register_forward_pre_hook(before, prepend=True).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
            yield

    @contextmanager
    def active(self, call: DenoiserCall) -> Iterator[_Computation]:
        """Intercept the attention of one computation of the denoiser.

        Raises:
            UnsupportedError: a planned layer ran and its attention was not seen.
        """
        computation = _Computation(self, call)
        token = _active.set(computation)
        try:
            with self._seeing(computation):
                yield computation
        finally:
            computation.leave()
            _active.reset(token)
        self._ever_hit |= computation.hit
        self._require(computation.entered - computation.hit)

    def _seeing(self, computation: _Computation) -> AbstractContextManager[Any]:
        """What makes attention calls come here: the hooks' mode, or the operator that stands in compiled graphs."""
        if not self._traced:
            return nullcontext()
        from hasten._compiled import answered_by

        def answer(module: nn.Module, *call: Any) -> Tensor:
            given = _Given(*call)
            layer = self._names.get(module)
            if layer is None:  # a layer that only another run intercepts
                return F.scaled_dot_product_attention(**given._asdict())
            computation.hit.add(layer)
            return self._chains[layer](self._describe(computation.forward, layer, given))

        return answered_by(answer)

    def check_complete(self, denoisers: Sequence[str]) -> None:
        """At the end of a run: every planned layer of a denoiser that computed anything must have been seen.

        Raises:
            UnsupportedError: one was not.
        """
        planned = {layer for layer in self._layers if layer.split(".", 1)[0] in denoisers}
        self._require(planned - self._ever_hit)

    def intercept(
        self,
        computation: _Computation,
        function: Callable[..., Tensor],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """One ``scaled_dot_product_attention`` call inside the denoiser."""
        layer = computation.inside[-1] if computation.inside else None
        if layer is None:
            return function(*args, **kwargs)
        computation.hit.add(layer)
        return self._chains[layer](self._describe(computation.forward, layer, _Given(*args, **kwargs)))

    def _chain(self, handlers: Sequence[tuple[str, AttentionHandler]]) -> Proceed:
        proceed: Proceed = self._dense
        for owner, handler in reversed(handlers):
            proceed = self._link(owner, handler, proceed)
        return proceed

    def _link(self, owner: str, handler: AttentionHandler, inner: Proceed) -> Proceed:
        several = len(self._owners) > 1

        def proceed(call: AttentionCall) -> Tensor:
            output = handler(call, inner)
            check_attention(owner, call, output)
            computation = _active.get() if several else None
            if computation is not None:
                computation.results.append((owner, call.layer, output.detach().sum(dtype=torch.float32)))
            return output

        return proceed

    def _describe(self, forward: DenoiserCall, layer: str, given: _Given) -> AttentionCall:
        backend = self._dense_backends.get(layer)
        return AttentionCall(
            backend=None if backend is None else backend.value,
            layer=layer,
            module=self._layers[layer],
            query=given.query,
            key=given.key,
            value=given.value,
            mask=given.attn_mask,
            dropout=given.dropout_p,
            causal=given.is_causal,
            scale=given.scale,
            grouped=given.enable_gqa,
            arguments=forward.kwargs,
            step=forward.step,
            run=forward.run,
            part=forward.part,
            parts=forward.parts,
        )

    def _dense(self, call: AttentionCall) -> Tensor:
        """The innermost link: dense attention on the backend the user chose."""
        if call.segment is not None and call.segment.sums is not None:
            found = attend_with_lse(call.query, call.key, call.value, call.scale)
            output, call.segment.sums.value = found
            return output
        backend = self._dense_backends.get(call.layer)
        if backend is None:
            return F.scaled_dot_product_attention(
                call.query,
                call.key,
                call.value,
                attn_mask=call.mask,
                dropout_p=call.dropout,
                is_causal=call.causal,
                scale=call.scale,
                enable_gqa=call.grouped,
            )
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        output = dispatch_attention_fn(
            call.query.transpose(1, 2),
            call.key.transpose(1, 2),
            call.value.transpose(1, 2),
            attn_mask=call.mask,
            dropout_p=call.dropout,
            is_causal=call.causal,
            scale=call.scale,
            enable_gqa=call.grouped,
            backend=backend,
        )
        return output.transpose(1, 2)

    def _naming_hooks(self, layer: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """Hooks that keep the stack of layers in progress. Another run may share the module: it is not ours to name."""

        def before(*_: Any) -> None:
            computation = _active.get()
            if computation is not None and computation.seam is self:
                computation.enter(layer)

        def after(*_: Any) -> None:
            computation = _active.get()
            if computation is not None and computation.seam is self and computation.inside:
                computation.inside.pop()
                if not computation.inside:
                    computation.leave()

        return before, after

    def _require(self, missed: set[str]) -> None:
        if not missed:
            return
        names = sorted(missed)
        processor = type(self._layers[names[0]].processor).__name__
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UnsupportedError(
            f"{', '.join(self._owners)}: the attention of {', '.join(names[:3])}{more} was not intercepted, so it "
            f"would have been computed as if the technique were off. Its processor {processor} does not use torch's "
            f"scaled_dot_product_attention; undo enable_xformers_memory_efficient_attention() or attention slicing, "
            f"or call set_attn_processor() with a stock processor."
        )


class _Mode(TorchFunctionMode):
    """Hands attention calls to the seam; inside of a handler it is off."""

    def __init__(self, computation: _Computation) -> None:
        super().__init__()
        self._computation = computation

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._computation.seam.intercept(self._computation, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
