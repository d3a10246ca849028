"""Kernels that take tiles as a batch of sequences with lengths of their own: torch's varlen attention, xformers.

Keys and values are put into tile order once; every tile's window is then a slice of them, given by start and length.
Windows overlap, so that nothing is copied per tile. Other tokens (text) are a second call, merged by log-sum-exp.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from hasten.plugins.rettention.kernels._base import Epilogue, SparseKernel
from hasten.plugins.rettention.kernels.fused import attend
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.math import merge, reshape
from hasten.plugins.rettention.operands import Operands

__all__ = ["PackedKernel", "VarlenKernel", "XformersKernel"]


class PackedKernel(SparseKernel):
    """Everything but the call itself."""

    @abstractmethod
    def sequences(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: list[int],
        starts: list[int],
        keys: list[int],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Attention of sequence after sequence.

        Args:
            q: (queries, H, d): the sequences' queries one after the other.
            k: (keys, H, d).
            v: (keys, H, d).
            lengths: queries of each sequence.
            starts: first key of each sequence, not decreasing; sequences may share keys.
            keys: keys of each sequence.
            scale: factor of the scores.

        Returns:
            Output (queries, H, d) and log-sum-exp (H, queries).
        """

    @override
    def refusal(self, device: torch.device, dtype: torch.dtype, dim: int, layout: SparseLayout) -> str | None:
        """Half precision on CUDA, windows that are contiguous in tile order."""
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"it computes in float16 and bfloat16, not in {dtype}"
        if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
            return "bfloat16 needs compute capability 8.0 or later; load the pipeline in float16"
        if dim % 8:
            return f"heads of {dim} channels are not a multiple of 8"
        return self.unfit(layout) or self._doubt(device, dtype)

    def _doubt(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Overlapping windows are no documented use of these kernels: try them once per device and type."""
        known: dict[Any, str | None] = vars(self).setdefault("_doubts", {})
        if (device, dtype) not in known:
            known[device, dtype] = self._probe(device, dtype)
        return known[device, dtype]

    def _probe(self, device: torch.device, dtype: torch.dtype) -> str | None:
        generator = torch.Generator(device).manual_seed(0)
        q, k, v = (torch.randn(256, 2, 64, generator=generator, device=device, dtype=dtype) for _ in range(3))
        lengths, starts, window = [64] * 4, [0, 16, 80, 128], 128
        try:
            out, lse = self.sequences(q, k, v, lengths, starts, [window] * 4, 0.125)
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
            return f"a trial call failed: {error}"
        for tile, start in enumerate(starts):
            rows, kept = slice(64 * tile, 64 * tile + 64), slice(start, start + window)
            a, b, c = (x[at].transpose(0, 1).unsqueeze(0) for x, at in ((q, rows), (k, kept), (v, kept)))
            expected, sums = attend(a, b, c, 0.125)
            near = torch.allclose(out[rows].transpose(0, 1), expected[0], atol=2e-2)
            if not (near and torch.allclose(lse[:, rows].float(), sums[0].float(), atol=2e-2)):
                return "a trial call with overlapping windows gave a wrong result on this device"
        return None

    @staticmethod
    def unfit(layout: SparseLayout) -> str | None:
        """Why the windows of a layout can't be slices."""
        if layout.shape.half is not None:
            return "a token-exact mask needs more than a start and a length per tile"
        if any(group.starts is None for group in layout.groups):
            return "its windows have to be contiguous: use mask='block'"
        return None

    @override
    def attend(
        self,
        parts: Operands,
        out: Tensor,
        epilogue: Epilogue | None = None,
        *,
        need_lse: bool = False,
    ) -> Tensor | None:
        """Windows of all samples in one call, other tokens in another one."""
        layout = parts.layout
        found, lse = self._windows(parts)
        if layout.grid.context:
            others = self._others(parts)
            if others is not None:
                found, lse = merge(found, lse, *others)
        found = layout.from_tiles(found)
        if need_lse:
            lse = layout.from_tiles(lse.unsqueeze(-1)).squeeze(-1)
        out.copy_(found if epilogue is None else reshape(found, epilogue.rho, epilogue.residual))
        return lse if need_lse else None

    def _windows(self, parts: Operands) -> tuple[Tensor, Tensor]:
        layout = parts.layout
        samples, tokens, whole = len(parts.query), layout.grid.tokens, layout.whole
        queries = _pack(layout.to_tiles(parts.query[:, :, layout.span]))
        keys, values = (_pack(whole.to_tiles(x[:, :, whole.span])) for x in (parts.key, parts.value))
        lengths = [group.size for group in layout.groups for _ in range(group.tiles)] * samples
        inside = [start for group in layout.groups for start in group.starts or ()]
        starts = [sample * tokens + start for sample in range(samples) for start in inside]
        widths = [layout.window] * len(starts)
        found = self.sequences(queries, keys, values, lengths, starts, widths, parts.scale)
        return _unpack(*found, samples)

    def _others(self, parts: Operands) -> tuple[Tensor, Tensor] | None:
        q, layout, visible = parts.query, parts.layout, parts.visible
        samples, context = len(q), layout.grid.context
        counts = [context] * samples if visible is None else visible.sum(1).tolist()
        if not any(counts):
            return None
        queries = _pack(layout.to_tiles(q[:, :, layout.span]))
        chosen = (
            torch.ones(samples, context, dtype=torch.bool, device=q.device) if visible is None else visible
        )
        keys, values = (layout.context(x).transpose(1, 2)[chosen] for x in (parts.key, parts.value))
        starts = [sum(counts[:sample]) for sample in range(samples)]
        found, lse = self.sequences(
            queries, keys, values, [layout.queries.tokens] * samples, starts, counts, parts.scale
        )
        empty = torch.tensor([count == 0 for count in counts], device=q.device)
        output, sums = _unpack(found, lse, samples)
        # A sample without text adds nothing, whatever a kernel makes of an empty sequence.
        output = output.masked_fill(empty[:, None, None, None], 0.0)
        return output, sums.masked_fill(empty[:, None, None], -torch.inf)


class VarlenKernel(PackedKernel):
    """``torch.nn.attention.varlen``, with the flash-attention kernel that is active there."""

    name: ClassVar[str] = "varlen"

    def __init__(self) -> None:
        self._varlen: Any = importlib.import_module("torch.nn.attention.varlen")
        if not hasattr(self._varlen, "AuxRequest"):
            raise ImportError(f"torch {torch.__version__} has no torch.nn.attention.varlen.AuxRequest")

    @override
    def sequences(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: list[int],
        starts: list[int],
        keys: list[int],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """The kernel takes a sequence's first key from the offsets and their number from ``seqused_k``."""
        queries = _numbers((0, *accumulate(lengths)), q.device)
        begins = _numbers((*starts, starts[-1] + keys[-1]), q.device)
        used = _numbers(tuple(keys), q.device)
        out, lse = self._varlen.varlen_attn(
            q,
            k,
            v,
            queries,
            begins,
            max(lengths),
            max(keys),
            return_aux=self._varlen.AuxRequest(lse=True),
            scale=scale,
            seqused_k=used,
        )
        return out, lse if lse.shape[-1] == len(q) else lse.transpose(0, 1)


class XformersKernel(PackedKernel):
    """``xformers.ops`` with a block-diagonal mask whose keys may have gaps."""

    name: ClassVar[str] = "xformers"

    def __init__(self) -> None:
        self._fmha: Any = importlib.import_module("xformers.ops.fmha")

    @override
    def sequences(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: list[int],
        starts: list[int],
        keys: list[int],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Partial attention returns the log-sum-exp."""
        bias = self._fmha.attn_bias.BlockDiagonalGappyKeysMask.from_seqlens(
            q_seqlen=lengths, kv_seqstarts=[*starts, len(k)], kv_seqlen=keys
        )
        bias.to(q.device)
        out, lse = self._fmha.memory_efficient_attention_partial(
            q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), attn_bias=bias, scale=scale
        )
        return out[0], lse[0]


def _pack(x: Tensor) -> Tensor:
    """(B, H, N, d) to (B * N, H, d)."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _unpack(found: Tensor, lse: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """(B * N, H, d) and (H, B * N) to (B, H, N, d) and (B, H, N)."""
    return found.unflatten(0, (samples, -1)).transpose(1, 2), lse.unflatten(1, (samples, -1)).transpose(0, 1)


@lru_cache(maxsize=256)
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """``values`` on a device; every layer and step asks for the same ones."""
    return torch.tensor(values, dtype=torch.int32, device=device)
