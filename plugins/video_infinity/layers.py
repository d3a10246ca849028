"""Handlers of the layers that mix frames, apart from attention: group norm, convolution, positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hasten.plugins.video_infinity.clip import current_clip
from hasten.plugins.video_infinity.math import group_moments, merge_moments, normalise

__all__ = ["bound_arguments", "convolve", "norm", "positions", "rotary"]

Inner = Callable[..., Any]
Handler = Callable[[Inner, tuple[Any, ...], dict[str, Any]], Any]


def bound_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a module's forward by name, as it was called."""
    signature = inspect.signature(type(module).forward)
    named: dict[str, Any] = {}
    for index, (name, value) in enumerate(signature.bind(module, *args, **kwargs).arguments.items()):
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif index > 0:  # self
            named[name] = value
    return named


def norm(module: nn.GroupNorm) -> Handler:
    """Group normalisation with the statistics of the whole video, in one exchange of three numbers per
    group."""

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None or clip.alone or not clip.config.norm_sync:
            return inner(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["input"]
        pending = clip.exchange.share("norm", clip.index, group_moments(x, module.num_groups))
        mean, variance = merge_moments(pending.shares())
        return normalise(x, mean, variance, module.weight, module.bias, module.eps)

    return handle


def convolve(module: nn.Conv3d) -> Handler:
    """Convolution over frames with as many frames of both neighbours as the kernel reaches.

    At the ends of the video the module's own zero padding stands, behind norm and activation as in the stock layer.
    """
    reach = module.kernel_size[0] // 2

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None or clip.alone or not clip.config.conv_sync:
            return inner(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["input"]
        context = clip.exchange.post("conv", clip.index, x, 2, reach, ()).wait()
        wide: Tensor = inner(torch.cat([context.left, x, context.right], 2))
        return wide.narrow(2, context.left.shape[2], x.shape[2])

    return handle


def positions(module: nn.Module) -> Handler:
    """Position embeddings of the frames of the clip, instead of the first ones."""

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None or (clip.alone and (clip.limit is None or clip.scope.frames <= clip.limit)):
            return inner(*args, **kwargs)
        bound = bound_arguments(module, args, kwargs)
        clip.table = getattr(module, "pe", None)
        return clip.mixing.positions(module, bound, clip.scope.clip, clip.scope.frames)

    return handle


def rotary(module: nn.Module) -> Handler:
    """Rotary embeddings of the frames of the clip; the tables are kept for its halos and global frames."""

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None:
            return inner(*args, **kwargs)
        frames = clip.scope.frames if clip.limit is None else min(clip.scope.frames, clip.limit)
        bound = bound_arguments(module, args, kwargs)
        clip.rotary = clip.mixing.rotary(module, inner, bound, max(frames, 2))
        return clip.mixing.as_argument(clip.rotary.at(clip.scope.clip))

    return handle
