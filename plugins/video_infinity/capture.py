"""Query, key and value as a stock attention module makes them, without computing its attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class _CapturedError(Exception):
    """Ends the module's forward where its projections are known."""

    def __init__(self, found: Projections) -> None:
        self.found = found


class _Capture(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(Projections._fields, args)) | (kwargs or {})
            raise _CapturedError(Projections(*(given[name] for name in Projections._fields)))
        return func(*args, **(kwargs or {}))


def project(inner: Callable[..., Any], arguments: Mapping[str, Any]) -> Projections:
    """What the attention module ``inner`` hands to torch's attention when called with ``arguments``."""
    try:
        with _Capture():
            inner(**arguments)
    except _CapturedError as captured:
        return captured.found
    raise RuntimeError("the attention module ended without calling torch's attention function")
