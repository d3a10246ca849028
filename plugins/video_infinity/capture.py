"""Query, key and value of a stock attention module, without computing its attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Projections", "project"]


class Projections(NamedTuple):
    """(B, heads, tokens, D) each, after normalisation and rotary embedding."""

    query: Tensor
    key: Tensor
    value: Tensor


class _ProjectionsKnownError(Exception):
    """Ends the forward of the module when its projections are known."""

    def __init__(self, found: Projections) -> None:
        self.found = found


class _Capture(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(Projections._fields, args)) | (kwargs or {})
            raise _ProjectionsKnownError(Projections(*(given[name] for name in Projections._fields)))
        return func(*args, **(kwargs or {}))


def project(inner: Callable[..., Any], arguments: Mapping[str, Any]) -> Projections:
    """The query, key and value that the attention module ``inner`` computes from ``arguments``."""
    try:
        with _Capture():
            inner(**arguments)
    except _ProjectionsKnownError as captured:
        return captured.found
    raise RuntimeError("the attention module ended without calling torch's attention function")
