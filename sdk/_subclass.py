"""The one lasting mark on an accelerated pipeline: its class, a generated subclass that looks like the stock one.

The subclass has the same name, module, documentation and call signature. Copies, pickles, ``from_pipe`` siblings and
everything else made from the class are stock pipelines. A shallow copy shares the weights and gets its own scheduler
and tokenizers, so that it can be called while a call of the original is in progress.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["accelerated_by", "make_subclass", "set_class", "stock_class"]

_MARK = "_hasten_acceleration"
CallHandler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
StateReader = Callable[[Any], Mapping[str, Any]]


def make_subclass(stock: type, acceleration: object, call: CallHandler, state: StateReader) -> type:
    """A subclass of ``stock`` whose instances are called through ``call(pipe, args, kwargs)``.

    Args:
        stock: the pipeline's own class.
        acceleration: what :func:`accelerated_by` answers for its instances.
        call: handles ``pipe(...)``.
        state: the attributes of a pipeline without what a call in progress swapped.
    """

    @functools.wraps(stock.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, args, kwargs)

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
        # from_pipe, from_pretrained and type(pipe)(...) construct a pipeline of their own, which nobody accelerated.
        return stock(*args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        reduced = super(generated, self).__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        function, arguments, *rest = reduced
        if function.__name__ == "__newobj__":  # pickle insists on the object's own class there
            function = object.__new__
        as_stock = tuple(stock if item is generated else item for item in arguments)
        if rest and isinstance(rest[0], dict):
            rest[0] = _with_own_state(state(self))
        return (stock if function is generated else function, as_stock, *rest)

    namespace = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "__call__": __call__,
        "__new__": __new__,
        "__reduce_ex__": __reduce_ex__,
        _MARK: acceleration,
    }
    generated: Any = type(stock)(stock.__name__, (stock,), namespace)
    made: type = generated
    return made


def accelerated_by(pipe: object) -> object | None:
    """What accelerates ``pipe`` at the moment, or ``None``."""
    return vars(type(pipe)).get(_MARK)


def stock_class(pipe: object) -> type:
    """The pipeline's own class, whether it is accelerated or not."""
    cls = type(pipe)
    return cls.__mro__[1] if _MARK in vars(cls) else cls


def set_class(pipe: object, cls: type) -> None:
    """Give ``pipe`` another class, past a pipeline's own ``__setattr__``, which writes its configuration."""
    object.__setattr__(pipe, "__class__", cls)


def _with_own_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Parts that change during a call cannot be shared: schedulers count steps, fast tokenizers keep their padding."""
    return {
        name: copy.deepcopy(value) if name == "scheduler" or hasattr(value, "backend_tokenizer") else value
        for name, value in state.items()
    }
