"""Handlers of the layers that mix frames, except attention: group norm, convolution, positions."""

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
    """Arguments of a call of a module's forward, by name."""
    signature = inspect.signature(type(module).forward)
    named: dict[str, Any] = {}
    for index, (name, value) in enumerate(signature.bind(module, *args, **kwargs).arguments.items()):
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif index > 0:  # self
            named[name] = value
    return named


def norm(module: nn.GroupNorm, convolution: nn.Conv3d | None = None) -> Handler:
    """Group normalisation with the statistics of the whole video, in one exchange of three numbers per group.

    Args:
        module: the layer.
        convolution: the convolution over frames that reads its output, if any. The frames of the neighbours within
            reach of its kernel are sent together with the statistics, before the norm, and normalised here.
    """
    reach = 0 if convolution is None else convolution.kernel_size[0] // 2

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None or clip.alone:
            return inner(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["input"]
        own = group_moments(x, module.num_groups)
        halo = reach if clip.config.conv_sync else 0
        kind = "norm" if convolution is None else "norm and conv"
        context = clip.exchange.share(kind, clip.index, own, x, 2, halo).wait()
        mean, variance = merge_moments(context.chosen if clip.config.norm_sync else own[None])
        clip.margin = context.left.shape[3] if halo else 0
        wide = torch.cat([context.left[0], x, context.right[0]], 2) if halo else x
        return normalise(wide, mean, variance, module.weight, module.bias, module.eps)

    return handle


def convolve(_: nn.Conv3d) -> Handler:
    """Convolution over the frames of the clip and those of its neighbours that the preceding norm has received.

    The ends of the video are padded with zeros by the module, after norm and activation, as in the stock layer.
    """

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        wide: Tensor = inner(*args, **kwargs)
        if clip is None or clip.alone:
            return wide
        return wide.narrow(2, clip.margin, clip.length)

    return handle


def positions(module: nn.Module) -> Handler:
    """Position embeddings of the frames of the clip, instead of the first frames."""

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None or (clip.alone and (clip.limit is None or clip.scope.frames <= clip.limit)):
            return inner(*args, **kwargs)
        bound = bound_arguments(module, args, kwargs)
        clip.table = getattr(module, "pe", None)
        return clip.mixing.positions(module, bound, clip.scope.clip, clip.scope.frames)

    return handle


def rotary(module: nn.Module) -> Handler:
    """Rotary embeddings of the frames of the clip; the tables are stored for halos and global frames."""

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None:
            return inner(*args, **kwargs)
        frames = clip.scope.frames if clip.limit is None else min(clip.scope.frames, clip.limit)
        bound = bound_arguments(module, args, kwargs)
        clip.rotary = clip.mixing.rotary(module, inner, bound, max(frames, 2))
        return clip.mixing.as_output(clip.rotary.at(clip.scope.clip), bound)

    return handle
