"""What one forward of a denoiser costs at a resolution, counted from the shapes of its layers.

``C(n) = a (n + m) + b (n + m)^2`` for joint attention, ``n`` image and ``m`` text tokens: every matrix of a layer is
multiplied with as many tokens as pass through it, and attention compares all pairs. No forward is run, so the count
holds for weights on any device, also where they have not been loaded. Multiplications and additions count
separately, as in PyTorch's FLOP counter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hasten._adapters.base import LatentSize

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Tokens", "forward_flops"]

_ONCE = re.compile(r"time|norm|ada|modul|guidance|pool|size_embed|add_embedding|emb_layers|fps|image_emb")
_TEXT = re.compile(r"\badd_|_add_|context|caption|text|txt|encoder_hid")
_CROSS = re.compile(r"attn2|cross_attn|attn_mt")
_TEMPORAL = re.compile(r"temp_attentions|temporal_transformer|motion_modules|transformer_in\b")
"""Layers of UNets in which the frames of one place attend to each other, in both attentions of a block."""
_JOINT_BLOCKS = re.compile(r"single_transformer_blocks|single_blocks")
_UNET_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?(.*)")


@dataclass(frozen=True)
class Tokens:
    """Tokens of one forward: of the picture (of all frames), and of the text that attends with it."""

    image: int
    text: int
    frames: int = 1

    @classmethod
    def of(cls, size: LatentSize, multiple: int, text: int) -> Tokens:
        """Tokens of a latent whose patches have ``multiple`` latent pixels a side."""
        frames = size.frames or 1
        return cls(frames * size.height * size.width // multiple**2, text, frames)


def forward_flops(denoiser: nn.Module, tokens: Tokens) -> float:
    """Floating-point operations of one forward of one sample.

    Args:
        denoiser: transformer or UNet of diffusers.
        tokens: what passes through it (a UNet's image tokens are latent pixels).
    """
    joint = _is_joint(denoiser)
    unet = hasattr(denoiser, "down_blocks") and hasattr(denoiser, "up_blocks")
    total = 0.0
    for name, module in denoiser.named_modules():
        here = _within_unet(denoiser, name, tokens) if unet else tokens
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
            total += 2.0 * module.weight.numel() * _rows(name, here, joint)
        elif _is_attention(module):
            total += 4.0 * _width(module) * _pairs(name, module, here, joint, unet)
    return total


def _within_unet(denoiser: nn.Module, name: str, tokens: Tokens) -> Tokens:
    """Tokens at the level of a UNet's layer. Frames are pictures of their own there, each with the text."""
    image = round(tokens.image * _unet_share(denoiser, name))
    return Tokens(image, tokens.frames * tokens.text, tokens.frames)


def _rows(name: str, tokens: Tokens, joint: bool) -> int:
    """How many tokens a layer is applied to."""
    if _ONCE.search(name):
        return 1
    if _TEMPORAL.search(name):
        return tokens.image
    if _CROSS.search(name) and re.search(r"to_k|to_v|to_kv", name):
        return tokens.text
    if _TEXT.search(name):
        return tokens.text
    both = _JOINT_BLOCKS.match(name) or (joint and _in_block(name))
    return tokens.image + tokens.text if both else tokens.image


def _pairs(name: str, attention: nn.Module, tokens: Tokens, joint: bool, unet: bool) -> float:
    """How many query-key pairs an attention layer compares (linear attention: tokens times the width of a head)."""
    if "Linear" in type(getattr(attention, "processor", None)).__name__:
        return tokens.image * _width(attention) / max(int(getattr(attention, "heads", 1)), 1)
    if _TEMPORAL.search(name):
        return float(tokens.image * tokens.frames)
    if unet:
        return float(tokens.image * (tokens.text if _CROSS.search(name) else tokens.image) / tokens.frames)
    if _CROSS.search(name):
        return float(tokens.image * tokens.text)
    if _TEXT.search(name):
        return float(tokens.text**2)
    both = joint or getattr(attention, "add_q_proj", None) is not None or _JOINT_BLOCKS.match(name)
    return float((tokens.image + tokens.text) ** 2 if both else tokens.image**2)


def _is_attention(module: nn.Module) -> bool:
    return isinstance(getattr(module, "to_q", None), torch.nn.Linear) or isinstance(
        getattr(module, "to_qkv", None), torch.nn.Linear
    )


def _width(attention: Any) -> int:
    """Width of all heads together."""
    if isinstance(getattr(attention, "to_q", None), torch.nn.Linear):
        return int(attention.to_q.out_features)
    return int(attention.to_qkv.out_features) // 3


def _is_joint(denoiser: nn.Module) -> bool:
    """Whether text and image run through the same weights in every block (CogVideoX, Z-Image, Lumina 2)."""
    names = {type(module).__name__ for module in denoiser.modules()}
    return bool(names & {"CogVideoXBlock", "ZImageTransformerBlock", "Lumina2TransformerBlock"})


def _in_block(name: str) -> bool:
    return re.match(r"(transformer_blocks|blocks|layers)\.", name) is not None


def _unet_share(denoiser: nn.Module, name: str) -> float:
    """Share of the latent's pixels that a UNet's layer works on: a quarter for each level down."""
    match = _UNET_BLOCK.match(name)
    levels: Any = denoiser.down_blocks
    if match is None:
        return 1.0
    kind, index, rest = match.group(1), int(match.group(2) or 0), match.group(3)
    depth = {"down_blocks": index, "mid_block": len(levels) - 1, "up_blocks": len(levels) - 1 - index}[kind]
    if "downsamplers" in rest:
        depth += 1
    if "upsamplers" in rest:
        depth -= 1
    return 0.25**depth
