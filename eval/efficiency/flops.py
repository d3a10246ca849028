"""Floating-point operations of a callable, two per multiply-accumulate, with torch's counter completed.

Torch's ``FlopCounterMode`` counts what has a formula and silently takes the rest as free. Missing in torch
2.13 are, among others, the CPU's fused attention (every ``scaled_dot_product_attention`` on a CPU counts 0),
matrix-vector products and every custom operator. The formulas below add the former; operators that certainly
compute but have no formula are listed in the result instead of vanishing from it.

Two things no counter at this level sees: a mask (masked attention counts as dense, since the dense kernel
computes it) and kernels launched past torch's dispatcher, such as a bare Triton launch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hasten.extend import FLASH_CPU, TorchDispatchMode, aten

_log = logging.getLogger("hasten")

Shape = Sequence[int]
Formula = Callable[..., int]

_aten = torch.ops.aten

#: Operators of ATen that fuse whole layers and have no formula of shapes alone. Seen, they are reported.
_OPAQUE = frozenset(
    {
        "aten._transformer_encoder_layer_fwd",
        "aten._native_multi_head_attention",
        "aten.mkldnn_rnn_layer",
        "aten._thnn_fused_lstm_cell",
        "aten._cudnn_rnn",
        "aten.quantized_lstm",
    }
)

#: Namespaces that never hide a computation worth counting.
_CHEAP_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "inductor"})


def attention_flops(query: Shape, key: Shape, value: Shape) -> int:
    """Dense attention: ``Q K^T`` and ``P V``.

    Args:
        query: ``[..., L, E]``.
        key: ``[..., S, E]``; fewer heads than ``query`` (grouped queries) count as repeated.
        value: ``[..., S, F]``.
    """
    batch, length, width = math.prod(query[:-2]), query[-2], query[-1]
    return 2 * batch * length * key[-2] * (width + value[-1])


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return attention_flops(query, key, value)


def _mv(matrix: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv(_bias: Shape, matrix: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _dot(a: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a)


def _mm(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _addbmm(_bias: Shape, a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * a[2] * b[2]


_FORMULAS: dict[Any, Formula] = {
    aten(FLASH_CPU): _attention,
    aten("_scaled_dot_product_fused_attention_overrideable"): _attention,
    _aten.mv: _mv,
    _aten.addmv: _addmv,
    _aten.dot: _dot,
    aten("_int_mm"): _mm,
    _aten.addbmm: _addbmm,
}


def register_formula(operator: Callable[..., Any], formula: Formula) -> None:
    """Tell the counter what a custom operator costs. Registering again replaces.

    Args:
        operator: a packet such as ``torch.ops.mylib.attention`` (not one overload of it).
        formula: called with the operator's arguments, tensors replaced by their shapes, and ``out_shape=``;
            returns floating-point operations, two per multiply-accumulate. A sparse kernel counts what it
            computes.
    """
    _FORMULAS[operator] = formula


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of one call.

    Attributes:
        total: all that could be counted, two per multiply-accumulate.
        by_operator: operator name -> its part.
        uncounted: operator name -> calls, of operators that compute but have no formula. Where this is not
            empty, ``total`` is too low.
    """

    total: int
    by_operator: dict[str, int]
    uncounted: dict[str, int]


class _Watcher(TorchDispatchMode):
    """Sees every operator that runs (the counter, entered inside, hands on what it has decomposed) and keeps
    the names of those without a formula."""

    def __init__(self, known: Container[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = known
        self.uncounted: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        name = str(packet)
        heavy = name in _OPAQUE or name.split(".")[0] not in _CHEAP_NAMESPACES
        if heavy and packet not in self._known:
            self.uncounted[name] = self.uncounted.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def measure_flops(function: Callable[[], Any]) -> FlopCount:
    """Run ``function`` once and count its floating-point operations.

    Args:
        function: takes nothing; what it raises passes through.

    Returns:
        The count with its parts and what could not be counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))
    watcher = _Watcher(counter.flop_registry)
    with watcher, counter:
        function()
    parts = counter.get_flop_counts().get("Global", {})
    by_operator = {str(operator): int(flops) for operator, flops in parts.items()}
    return FlopCount(int(counter.get_total_flops()), by_operator, watcher.uncounted)


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of one call of ``function``; see :func:`measure_flops`.

    Operators without a formula are named in a warning of the ``hasten`` logger: their part is missing.
    """
    count = measure_flops(function)
    if count.uncounted:
        _log.warning("FLOPs of %s are not counted: no formula.", ", ".join(count.uncounted))
    return count.total
