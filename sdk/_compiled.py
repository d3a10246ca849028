"""Attention of compiled denoisers: one opaque operator in the graph, which asks at run time whose attention it is.

What a technique does with attention differs from step to step. Traced into a graph it would compile anew on every
step, or be frozen at the first one. So the layers get, for the length of a run, processors that call the operator
``hasten::attention`` in the place of torch's function. The operator is the same for every layer and step: a tensor that
the processor carries, of which only the address counts, tells the layer, and the context tells the run. So a graph
serves all steps, and all blocks of :meth:`compile_repeated_blocks`, as it does without `hasten`.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten._swap import Swap

__all__ = ["answered_by", "numbered"]

Answer = Callable[..., Tensor]
"""Computes ``(layer, query, key, value, mask, dropout, causal, scale, grouped)``."""

_answer: ContextVar[Answer | None] = ContextVar("hasten_compiled_attention", default=None)
_layers: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
"""Address of a tag -> its layer."""


@contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Attention of numbered layers goes to ``answer``, in this context."""
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)


# --- the operator


@torch.library.custom_op("hasten::attention", mutates_args=(), tags=(torch._C.Tag.cudagraph_unsafe,))
def _attention(
    tag: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> Tensor:
    answer, layer = _answer.get(), _layers.get(tag.data_ptr())
    if answer is None or layer is None:
        output = F.scaled_dot_product_attention(
            query, key, value, mask, dropout, causal, scale=scale, enable_gqa=grouped
        )
    else:
        # A copy, since the graph may use the memory again: what a technique keeps must stay what it is.
        output = answer(layer, query, key, value, mask, dropout, causal, scale, grouped).clone()
    return output.transpose(1, 2).contiguous().transpose(1, 2)


@_attention.register_fake
def _like_attention(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Tensor:  # noqa: ARG001
    batch, heads, tokens, _channels = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[-1])).transpose(1, 2)


# --- processors that call it


class _Tracing:
    """The tag of the layer that is being traced. Only the compiler reads it."""

    tag: Tensor


_tracing = _Tracing()
_eager: ContextVar[Tensor] = ContextVar("hasten_tag")


def _in_place_of_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` with its own signature."""
    tag = _tracing.tag if torch.compiler.is_compiling() else _eager.get()
    result: Tensor = torch.ops.hasten.attention(
        tag, query, key, value, attn_mask, float(dropout_p), is_causal, scale, enable_gqa
    )
    return result


def _in_place_of_diffusers(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """``dispatch_attention_fn`` of diffusers, which has tokens before heads."""
    if parallel_config is not None:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        given = (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs)
        return dispatch_attention_fn(*given, backend=backend, parallel_config=parallel_config)
    query, key, value = (part.permute(0, 2, 1, 3) for part in (query, key, value))
    return _in_place_of_torch(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa).permute(
        0, 2, 1, 3
    )


@functools.cache
def _twin(name: str) -> types.ModuleType:
    """The module ``name`` with other attention functions, for functions that look them up there.

    It is a module of its own, because the compiler finds a function's globals by the name of its module.
    """
    twin = types.ModuleType(f"hasten_twin_of_{name.replace('.', '_')}")
    twin.__dict__.update({**vars(sys.modules[name]), "__name__": twin.__name__})
    names: Any = twin.__dict__
    if name == F.__name__:
        names["scaled_dot_product_attention"] = _in_place_of_torch
    for key, value in list(names.items()):
        if value is F:
            names[key] = _twin(F.__name__)
        elif key == "dispatch_attention_fn":
            names[key] = _in_place_of_diffusers
    sys.modules[twin.__name__] = twin
    return twin


@functools.cache
def _numbered_class(stock: type) -> type:
    """A processor class that does as ``stock`` does, and names its layer first."""
    call = stock.__call__
    inner = types.FunctionType(
        call.__code__, vars(_twin(call.__module__)), call.__name__, call.__defaults__, call.__closure__
    )
    inner.__kwdefaults__ = call.__kwdefaults__

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            _tracing.tag = self._hasten_tag
            return inner(self, *args, **kwargs)
        token = _eager.set(self._hasten_tag)
        try:
            return inner(self, *args, **kwargs)
        finally:
            _eager.reset(token)

    return type(stock.__name__, (stock,), {"__call__": __call__})


class _Numbered:
    """The processor of one layer, numbered. ``users`` counts the runs in progress that need it."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        stock: Any = layer.processor
        stock_class: Any = type(stock)
        kind: Any = _numbered_class(stock_class)
        self.stock = stock
        self.tag = torch.zeros((), device=device)
        self.processor = kind.__new__(kind)
        self.processor.__dict__.update(vars(stock), _hasten_tag=self.tag)
        self.users = 0
        self.swap: Swap | None = None
        _layers[self.tag.data_ptr()] = layer


_lock = threading.Lock()
_known: WeakKeyDictionary[nn.Module, _Numbered] = WeakKeyDictionary()
"""Kept from run to run, so that the compiler sees the same objects again."""


@contextmanager
def numbered(layer: nn.Module) -> Iterator[None]:
    """``layer`` with a numbered processor, for the length of a ``with`` block. Several runs may share it.

    Args:
        layer: an attention module, whose processor looks up torch's or diffusers' function when it is called.
    """
    with _lock:
        made = _known.get(layer)
        if made is None or (not made.users and made.stock is not layer.processor):
            device = next((parameter.device for parameter in layer.parameters()), torch.device("cpu"))
            made = _known[layer] = _Numbered(layer, device)
        if not made.users:
            in_modules = "processor" in layer._modules
            made.swap = Swap(_Children(layer) if in_modules else layer, "processor", made.processor)
        made.users += 1
    try:
        yield
    finally:
        with _lock:
            made.users -= 1
            if not made.users and made.swap is not None:
                made.swap.undo()


class _Children:
    """The children of a module as attributes: a processor that is a module is one of them."""

    def __init__(self, module: nn.Module) -> None:
        self.__dict__ = module._modules
