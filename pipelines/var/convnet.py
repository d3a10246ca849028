"""Convolutional encoder and decoder of the tokenizers, in the layout of CompVis' VQGAN.

Module names are those of the published checkpoints, so no mapping is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvDecoder", "ConvEncoder"]

_EPS = 1e-6


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group normalisation; 24 groups if ``groups`` does not divide the channels."""
    return nn.GroupNorm(groups if channels % groups == 0 else 24, channels, eps=_EPS)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each preceded by normalisation and SiLU."""

    def __init__(self, inner: int, outer: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(inner, groups)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = _norm(outer, groups)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, H, W) -> (B, outer, H, W)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        added: Tensor = self.nin_shortcut(x) + hidden
        return added


class PixelAttention(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        added: Tensor = x + self.proj_out(out.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return added


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = PixelAttention(channels, groups) if attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Resample(nn.Module):
    """Halves (stride 2, padded at the far edges) or doubles (nearest, then 3x3) both sides."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2), or twice the sides."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1))
        resampled: Tensor = self.conv(x)
        return resampled


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if the level has it."""

    def __init__(self, widths: Sequence[int], groups: int, attention: bool) -> None:
        super().__init__()
        self.downsample: Resample | None = None
        self.upsample: Resample | None = None
        self.block = nn.ModuleList(ResidualBlock(i, o, groups) for i, o in pairwise(widths))
        self.attn = nn.ModuleList(PixelAttention(o, groups) for o in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class ConvEncoder(nn.Module):
    """Pictures to latents.

    Args:
        widths: channels of each level, from the finest.
        blocks: residual blocks of a level.
        latent_channels: channels of the latent.
        groups: groups of the group normalisation.
        attention: whether the coarsest level and the middle have attention.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        latent_channels: int,
        groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
            level = Level([before, *[width] * blocks], groups, attention and i == last)
            if i < last:
                level.downsample = Resample(width, up=False)
            self.down.append(level)
        self.mid = Middle(widths[-1], groups, attention)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, latent channels, h, w)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if level.downsample is not None:
                x = level.downsample(x)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class ConvDecoder(nn.Module):
    """Latents to pictures. Arguments as for :class:`ConvEncoder`; every level has one more block."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        latent_channels: int,
        groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups, attention)
        levels = []
        for i, width in enumerate(widths):
            before = widths[min(i + 1, last)]
            level = Level([before, *[width] * (blocks + 1)], groups, attention and i == last)
            if i > 0:
                level.upsample = Resample(width, up=True)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, latent channels, h, w) -> (B, 3, H, W), about [-1, 1]."""
        x = self.mid(self.conv_in(x))
        for level in reversed(list(self.up)):
            x = level(x)
            if level.upsample is not None:
                x = level.upsample(x)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out
