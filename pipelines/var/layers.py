"""Layers of the next-scale transformer.

The residual stream, modulations and logits are float32; matrix products are computed in the dtype of their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Attend",
    "Block",
    "CrossAttention",
    "Modulation",
    "RotaryTable",
    "SelfAttention",
    "SingleLinear",
    "TextPool",
    "attention",
    "normalise",
    "rms_normalise",
    "rotary_phases",
]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(query, key, value) -> out``, all (N, heads, tokens, dim): attention over the cached tokens."""
RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines (tokens, dim / 2) of the rotation of each pair of channels."""
Parts = tuple[Tensor, ...]
TextKV = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values (N, heads, tokens, dim) of the text, and a boolean mask (N, 1, 1, tokens), ``False`` for padding."""

_LOG_LIMIT = math.log(100.0)
_EPS = 1e-6


class SingleLinear(nn.Linear):
    """A linear layer that computes in float32 for any dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> float32 (..., out)."""
        device = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"  # not on meta
        with torch.autocast(device, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)


class Modulation(nn.Module):
    """AdaLN parameters gamma1, gamma2, scale1, scale2, shift1, shift2 from the condition.

    Args:
        width: width of the model.
        shared: whether all blocks share the linear layer; each then adds its own table.
    """

    def __init__(self, width: int, shared: bool) -> None:
        super().__init__()
        self.linear = None if shared else nn.Linear(width, 6 * width)
        self.table = nn.Parameter(torch.zeros(1, 1, 6, width)) if shared else None

    def forward(self, condition: Tensor, common: Tensor | None) -> Parts:
        """Six float32 tensors (N, 1, width) from the condition (N, width) and, if shared, its (N, 6 width)."""
        if self.linear is not None:
            common = self.linear(F.silu(condition).to(self.linear.weight.dtype))
        assert common is not None  # a model builds all blocks alike
        six = common.float().view(len(condition), 1, 6, -1)
        if self.table is not None:
            six = six + self.table.float()
        return six.unbind(2)


class SelfAttention(nn.Module):
    """Cosine attention: L2-normalised queries and keys, a learned logit scale per head, no bias on keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.full((heads,), math.log(4.0)))

    def forward(self, x: Tensor, rotary: RotaryTable | None, attend: Attend) -> Tensor:
        """(N, n, width) -> (N, n, width)."""
        x = x.to(self.to_q.weight.dtype)
        query, key, value = (split_heads(layer(x), self.heads) for layer in (self.to_q, self.to_k, self.to_v))
        scale = self.logit_scale.float().clamp(max=_LOG_LIMIT).exp().view(1, -1, 1, 1)
        query = F.normalize(query.float(), dim=-1) * scale
        key = F.normalize(key.float(), dim=-1)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        out = attend(query.to(value.dtype), key.to(value.dtype), value)
        merged: Tensor = self.to_out(merge_heads(out))
        return merged


class CrossAttention(nn.Module):
    """Attention to the text, whose keys and values are computed once per picture."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def text_kv(self, text: Tensor, mask: Tensor | None) -> TextKV:
        """Keys and values of the text (N, tokens, width)."""
        text = text.to(self.to_k.weight.dtype)
        return split_heads(self.to_k(text), self.heads), split_heads(self.to_v(text), self.heads), mask

    def forward(self, x: Tensor, text: TextKV) -> Tensor:
        """(N, n, width) -> (N, n, width)."""
        query = split_heads(self.to_q(x.to(self.to_q.weight.dtype)), self.heads)
        out = attention(query, text[0], text[1], text[2])
        merged: Tensor = self.to_out(merge_heads(out))
        return merged


class TextPool(nn.Module):
    """Attention pooling of text states into one vector, with a learned query for each head."""

    def __init__(self, text_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, heads, width // heads) / math.sqrt(width // heads))
        self.to_k = nn.Linear(text_width, width, bias=False)
        self.to_v = nn.Linear(text_width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """(N, tokens, text width) -> (N, width)."""
        text = text.to(self.to_k.weight.dtype)
        key, value = split_heads(self.to_k(text), self.heads), split_heads(self.to_v(text), self.heads)
        query = self.query.to(key.dtype)[:, :, None].expand(len(text), -1, 1, -1)
        out = attention(query, key, value, mask)
        pooled: Tensor = self.to_out(merge_heads(out)[:, 0])
        return pooled


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh) between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n, width) -> (N, n, width)."""
        hidden = F.gelu(self.fc1(x.to(self.fc1.weight.dtype)), approximate="tanh")
        out: Tensor = self.fc2(hidden)
        return out


class BlockInputs(NamedTuple):
    """Inputs of a block besides the tokens: modulations, rotary tables, text, and attention over the cache."""

    parts: Parts
    rotary: RotaryTable | None
    text: TextKV | None
    attend: Attend


class Block(nn.Module):
    """Self-attention, cross-attention to text if there is any, and a feed-forward layer."""

    def __init__(self, width: int, heads: int, *, shared: bool, cross: bool) -> None:
        super().__init__()
        self.norm = Modulation(width, shared)
        self.attn = SelfAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width, eps=_EPS) if cross else None
        self.cross_attn = CrossAttention(width, heads) if cross else None
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, given: BlockInputs) -> Tensor:
        """float32 (N, n, width) -> float32 (N, n, width)."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = given.parts
        x = x + gamma1 * self.attn(normalise(x) * (1 + scale1) + shift1, given.rotary, given.attend).float()
        if self.cross_attn is not None and self.cross_norm is not None and given.text is not None:
            normed = self.cross_norm(x.to(self.cross_norm.weight.dtype))
            x = x + self.cross_attn(normed, given.text).float()
        out: Tensor = x + gamma2 * self.ff(normalise(x) * (1 + scale2) + shift2).float()
        return out


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """Scaled dot-product attention under a boolean mask.

    On a CPU with gradients, it is computed without the fused kernel, whose backward pass takes four times as long for
    short sequences.
    """
    if not (torch.is_grad_enabled() and query.device.type == "cpu"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits + torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
    return torch.softmax(logits, dim=-1).to(value.dtype) @ value


def normalise(x: Tensor) -> Tensor:
    """Layer normalisation over channels without learned parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)


def rms_normalise(x: Tensor) -> Tensor:
    """Root-mean-square normalisation over channels in float32, without a weight."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, n, heads * dim) -> (N, heads, n, dim)."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def merge_heads(x: Tensor) -> Tensor:
    """(N, heads, n, dim) -> (N, n, heads * dim)."""
    return x.transpose(1, 2).flatten(2)


def rotate(x: Tensor, rotary: RotaryTable) -> Tensor:
    """Rotate each pair of channels (2j, 2j + 1) of (N, heads, n, dim) by its phase."""
    cos, sin = rotary
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def rotary_phases(grid: tuple[int, int], last: tuple[int, int], dim: int) -> RotaryTable:
    """Rotary table of the tokens of a grid: rows rotate the first half of the channel pairs, columns the second.

    Positions are scaled to the finest grid ``last`` of the aspect ratio, and rounded half to even.

    Args:
        grid: rows and columns of the scale.
        last: rows and columns of the finest scale of the model for this aspect ratio.
        dim: channels of a head, a multiple of 4.

    Returns:
        Cosines and sines, float32 (rows * columns, dim / 2).
    """
    frequencies = 10_000.0 ** (-torch.arange(0, dim // 2, 2).float() / (dim // 2))
    rows = (torch.arange(grid[0]) * (last[0] / grid[0])).round()
    columns = (torch.arange(grid[1]) * (last[1] / grid[1])).round()
    phases = torch.cat(
        [
            (rows[:, None] * frequencies)[:, None].expand(-1, grid[1], -1),
            (columns[:, None] * frequencies)[None].expand(grid[0], -1, -1),
        ],
        dim=-1,
    ).flatten(0, 1)
    return phases.cos(), phases.sin()
