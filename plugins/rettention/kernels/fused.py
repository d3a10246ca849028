"""Fused attention with its log-sum-exp: torch's own kernels, called where they give both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hasten.extend import CUDNN, EFFICIENT, FLASH, FLASH_CPU, TorchDispatchMode, aten

__all__ = ["Recorded", "attend", "operator", "recorded"]

_CHUNK = 1 << 26
"""Bytes of scores that the plain computation of a log-sum-exp holds at a time."""


def operator(device: torch.device, dtype: torch.dtype, masked: bool) -> str:
    """Name of the torch operator that :func:`attend` uses, ``"math"`` where no fused one returns the log-sum-exp."""
    if device.type == "cpu":
        return FLASH_CPU
    if device.type != "cuda":
        return "math"
    modern = torch.cuda.get_device_capability(device) >= (8, 0)  # older ones have no FlashAttention
    if dtype in (torch.float16, torch.bfloat16) and modern and not masked:
        return FLASH
    return EFFICIENT if dtype != torch.float64 else "math"


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp.

    Args:
        q: (B, H, N, d).
        k: (B, H, S, d).
        v: (B, H, S, d).
        scale: factor of the scores.
        keep: broadcast over (B, H, N, S): which pairs count (boolean), or what is added to their scores.

    Returns:
        Output (B, H, N, d) in the type of ``q``, log-sum-exp (B, H, N) in single precision or better.
    """
    name = operator(q.device, q.dtype, keep is not None)
    if name == "math":
        return _plain(q, k, v, scale, keep)
    bias = None if keep is None else _bias(q, k, keep)
    if name == FLASH_CPU:
        out, lse = aten(FLASH_CPU)(q, k, v, attn_mask=bias, scale=scale)
        return out, lse
    if name == FLASH:
        width = q.shape[-1]
        pad = -width % 8
        padded = (torch.nn.functional.pad(x, (0, pad)) for x in (q, k, v)) if pad else (q, k, v)
        found = aten(FLASH)(*padded, scale=scale)
        return found[0][..., :width], found[1]
    out, lse, *_ = aten(EFFICIENT)(q, k, v, bias, True, scale=scale)
    return out, lse[..., : q.shape[2]]


def _bias(q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    """``keep`` as an additive mask; rows padded to 16 in memory, which the CUDA kernel asks for."""
    length = k.shape[2]
    shape = (*torch.broadcast_shapes(keep.shape[:-1], q.shape[:-1]), length)
    if q.device.type == "cpu":
        shape = tuple(keep.shape)
    room = torch.zeros(*shape[:-1], length + -length % 16, dtype=q.dtype, device=q.device)
    bias = room[..., :length]
    return bias.masked_fill_(~keep, -torch.inf) if keep.dtype == torch.bool else bias.copy_(keep)


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same by definition, a few queries at a time."""
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = max(1, _CHUNK // (8 * q.shape[0] * q.shape[1] * k.shape[2]))
    outputs, sums = [], []
    for first in range(0, q.shape[2], rows):
        some = slice(first, first + rows)
        scores = q[:, :, some].to(wide) @ k.to(wide).transpose(-1, -2) * scale
        if keep is not None:
            mask = keep[..., some, :] if keep.shape[-2] > 1 else keep
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        sums.append(scores.logsumexp(-1))
        outputs.append((torch.softmax(scores, -1) @ v.to(wide)).to(q.dtype))
    return torch.cat(outputs, 2), torch.cat(sums, 2)


class Recorded(TorchDispatchMode):
    """Listens for the fused operator behind an attention call, and keeps its log-sum-exp.

    Attributes:
        lse: (B, H, N) of the last attention that was heard, ``None`` if there was none.
        name: of the operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lse: Tensor | None = None
        self.name = ""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in _HEARD:
            return func(*args, **(kwargs or {}))
        place = _HEARD[name]
        if place is not None and len(args) > place:
            args = (
                *args[:place],
                True,
                *args[place + 1 :],
            )  # compute_log_sumexp, off where nothing needs gradients
        result = func(*args, **(kwargs or {}))
        lse = result[1]
        self.lse, self.name = (lse.squeeze(-1) if lse.ndim == 4 else lse)[..., : args[0].shape[2]], name
        return result


_HEARD: dict[str, int | None] = {
    FLASH_CPU: None,
    FLASH: None,
    EFFICIENT: 4,
    CUDNN: 4,
}
"""Operators whose second result is the log-sum-exp -> where the argument is that asks for it."""


def recorded(
    dense: Callable[[], Tensor],
    q: Tensor,
    k: Tensor,
    scale: float,
    keep: Tensor | None,
    foreign: bool = False,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, str]:
    """The result of ``dense()`` exactly as it is, its log-sum-exp under ``keep``, and how that was found.

    Where a fused operator of torch computes the attention, its log-sum-exp is a by-product. Otherwise (a ``foreign``
    backend, the plain kernel) the log-sum-exp costs a second pass over the scores. ``dense()`` adds ``shift`` to all of
    them, ``keep`` does not.
    """
    ears = Recorded()
    with nullcontext() if foreign else ears:  # FlexAttention compiles itself, which no mode may look into
        output = dense()
    if ears.lse is not None and ears.lse.shape == q.shape[:3]:
        return output, ears.lse if shift is None else ears.lse - shift, ears.name
    _, lse = _plain(q, k, k[..., :1], scale, keep)
    return output, lse, "second pass"
