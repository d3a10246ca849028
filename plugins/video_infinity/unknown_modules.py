"""Finds modules of a denoiser that may mix frames and that its adapter does not list."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import nn

from hasten.extend import FrameMixing, Target, attention_names, unwrapped

__all__ = ["unknown_modules"]


def unknown_modules(target: Target) -> Iterator[str]:
    """Names of attention layers, convolutions and modules with ``num_frames`` that the adapter does not list."""
    mixing = target.capability(FrameMixing)
    for denoiser, wrapped in target.denoisers.items():
        root = unwrapped(wrapped)
        known = {layer.name for layer in mixing.layers(root)}
        free = mixing.frame_free(root)
        attentions = attention_names(root)
        for name, module in root.named_modules():
            if name in known or name in free or not name:
                continue
            if name in attentions or _convolves_frames(module) or _counts_frames(name, module, known):
                yield f"{denoiser}.{name}"


def _convolves_frames(module: nn.Module) -> bool:
    """Whether a convolution reaches beyond its own patch of frames."""
    if isinstance(module, nn.Conv1d):
        return module.kernel_size[0] > module.stride[0]
    return isinstance(module, nn.Conv3d) and module.kernel_size[0] > module.stride[0]


def _counts_frames(name: str, module: nn.Module, known: set[str]) -> bool:
    """Whether a module takes the number of frames and contains no listed module."""
    if "num_frames" not in inspect.signature(type(module).forward).parameters:
        return False
    inside = any(other.startswith(f"{name}.") for other in known)
    return not inside and any(True for _ in module.parameters())
