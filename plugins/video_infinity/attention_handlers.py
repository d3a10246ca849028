"""Attention over the frames of several clips: all frames in mode ``full``, window and global frames in dual modes.

There are two handlers per attention layer: one at the module, which has its input, and one at the attention seam of the
host, which has query, key and value. If inputs are exchanged, the stock module computes keys and values of remote
frames: it runs on their inputs up to its attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import AttentionCall, LayerKind, Rotary, Segment
from hasten.plugins.video_infinity.capture import project
from hasten.plugins.video_infinity.clip import ClipForward, LayerCall, current_clip
from hasten.plugins.video_infinity.dual_attention import ContextKeys, DualAttention, Keys, OwnKeys
from hasten.plugins.video_infinity.layer_handlers import Handler, Inner, bound_arguments
from hasten.plugins.video_infinity.math import entropy_scale, scope_bias
from hasten.plugins.video_infinity.reanchored import reanchored_attention

__all__ = ["attention_inside", "attention_layer"]

Proceed = Callable[[AttentionCall], Tensor]


def attention_layer(module: nn.Module, kind: LayerKind) -> Handler:
    """A handler that starts the exchange of the input and records the layer for :func:`attention_inside`."""

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clip = current_clip.get()
        if clip is None:
            return inner(*args, **kwargs)
        bound = bound_arguments(module, args, kwargs)
        pending = None
        if clip.messages == "input" and not clip.alone:
            x = bound["hidden_states"].unflatten(1, (clip.length, -1))
            halo, chosen = _wanted(clip)
            pending = clip.exchange.post(kind.value, clip.index, [x], 1, halo, chosen)
        clip.layer = LayerCall(inner, bound, pending)
        try:
            return inner(**bound)
        finally:
            clip.layer = None

    return handle


def attention_inside(kinds: dict[str, LayerKind]) -> Callable[[AttentionCall, Proceed], Tensor]:
    """The handler of the attention seam.

    Args:
        kinds: the kind of every layer by name.
    """

    def handle(call: AttentionCall, proceed: Proceed) -> Tensor:
        clip = current_clip.get()
        if clip is None or clip.layer is None:
            return proceed(call)
        if clip.config.mode == "full":
            return _full(clip, clip.layer, call, kinds[call.layer], proceed)
        if kinds[call.layer] is LayerKind.TEMPORAL:
            return _temporal(clip, clip.layer, call, proceed)
        return DualAttention(
            clip, call, proceed, *_keys(clip, clip.layer, call, LayerKind.ATTENTION)
        ).compute()

    return handle


def _wanted(clip: ClipForward) -> tuple[int, tuple[int, ...]]:
    """Halo and global frames that a layer needs from other clips."""
    if clip.config.mode == "full":
        return 0, tuple(range(clip.scope.frames))
    return clip.scope.halo, clip.scope.chosen


def _full(
    clip: ClipForward, layer: LayerCall, call: AttentionCall, kind: LayerKind, proceed: Proceed
) -> Tensor:
    """The attention of the pipeline with keys and values of all frames."""
    if clip.alone:
        return proceed(call)
    own, wait = _keys(clip, layer, call, kind)
    everything = wait().chosen
    text = clip.mixing.joint
    tokens = own.text.key.shape[2] if own.text is not None else 0
    mask = call.mask
    if mask is not None and mask.shape[-1] == call.key.shape[2]:
        mask = _widened(mask, tokens, everything.key.shape[2], text)
    keys, values = [everything.key], [everything.value]
    if own.text is not None:
        place = 0 if text == "first" else 1
        keys.insert(place, own.text.key)
        values.insert(place, own.text.value)
    segment = None
    if kind is LayerKind.ATTENTION:
        segment = Segment("all", clip.scope.frames, clip.scope.clip, call.query.shape[2])
    key, value = torch.cat(keys, 2), torch.cat(values, 2)
    return proceed(replace(call, key=key, value=value, mask=mask, segment=segment))


def _widened(mask: Tensor, text: int, video: int, place: str | None) -> Tensor:
    """A mask over keys that hides no video token, extended to more video tokens."""
    hidden = mask[..., :text] if place == "first" else mask[..., mask.shape[-1] - text :]
    fill = True if mask.dtype == torch.bool else 0.0
    free = torch.full((*mask.shape[:-1], video), fill, dtype=mask.dtype, device=mask.device)
    return torch.cat([hidden, free] if place == "first" else [free, hidden], -1)


def _temporal(clip: ClipForward, layer: LayerCall, call: AttentionCall, proceed: Proceed) -> Tensor:
    """Temporal attention, in which a token is a frame: few keys and many sequences, so one call with a small mask."""
    own, wait = _keys(clip, layer, call, LayerKind.TEMPORAL)
    context = wait()
    if clip.limit is not None and clip.scope.frames > clip.limit:
        return reanchored_attention(clip, layer, call, own.video, context)
    bias = clip.remember("bias", lambda: scope_bias(clip.scope, clip.biases))
    scale = call.scale if call.scale is not None else call.query.shape[-1] ** -0.5
    query = call.query
    if clip.config.token_scale and clip.trained:
        factors = entropy_scale(clip.scope, clip.trained).to(query)
        query = query * factors[:, None]
    keys = [context.left.key, own.video.key, context.right.key, context.chosen.key]
    values = [context.left.value, own.video.value, context.right.value, context.chosen.value]
    mask = None if bias is None else bias.to(query)
    if mask is not None and mask.shape[0] == 1:
        mask = mask.expand(query.shape[2], -1)
    changed = replace(
        call, query=query, key=torch.cat(keys, 2), value=torch.cat(values, 2), mask=mask, scale=scale
    )
    return proceed(changed)


def _keys(
    clip: ClipForward, layer: LayerCall, call: AttentionCall, kind: LayerKind
) -> tuple[OwnKeys, Callable[[], ContextKeys]]:
    """Keys and values of the clip, and a function that waits for those of other clips."""
    video = call.query.shape[2] if kind is LayerKind.TEMPORAL else layer.bound["hidden_states"].shape[1]
    own = _split(clip, call.key, call.value, video)
    each = video // clip.length
    if clip.messages == "input" and not clip.alone:
        return own, lambda: _project(clip, layer, each)
    halo, chosen = _wanted(clip)
    both = [t.unflatten(2, (clip.length, each)) for t in own.video]
    pending = clip.exchange.post(kind.value, clip.index, both, 2, halo, chosen)

    def wait() -> ContextKeys:
        context = pending.wait()
        parts = (context.left, context.right, context.chosen)
        return ContextKeys(*(Keys(*part.flatten(3, 4)) for part in parts))

    return own, wait


def _split(clip: ClipForward, key: Tensor, value: Tensor, video: int) -> OwnKeys:
    """Video and text tokens of keys and values."""
    text = key.shape[2] - video
    if not text:
        return OwnKeys(Keys(key, value), None)
    sizes = [text, video] if clip.mixing.joint == "first" else [video, text]
    parts = [Keys(k, v) for k, v in zip(key.split(sizes, 2), value.split(sizes, 2), strict=True)]
    return OwnKeys(*(parts[::-1] if clip.mixing.joint == "first" else parts))


def _rotary(clip: ClipForward, rotary: Rotary, frames: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of the exchanged frames, which all layers share."""
    tables: tuple[Tensor, Tensor] = clip.remember("rotary", lambda: rotary.at(frames))
    return tables


def _project(clip: ClipForward, layer: LayerCall, each: int) -> ContextKeys:
    """Keys and values of the exchanged inputs, computed by the stock module."""
    if layer.pending is None:
        raise RuntimeError("the input of an attention layer was not exchanged")
    context = layer.pending.wait()
    parts = [part[0] for part in (context.left, context.right, context.chosen)]
    inputs = torch.cat(parts, 1)
    halo, chosen = _wanted(clip)
    frames = (*clip.scope.left, *clip.scope.right, *chosen) if halo else chosen
    bound = {**layer.bound, "hidden_states": inputs.flatten(1, 2)}
    mask, text = bound.get("attention_mask"), bound.get("encoder_hidden_states")
    if mask is not None and (text is None or mask.shape[-1] != text.shape[1]):
        bound["attention_mask"] = None  # it covers the video tokens of the clip, too
    name = clip.mixing.rotary_argument
    if name is not None and clip.rotary is not None:
        bound[name] = clip.mixing.as_argument(_rotary(clip, clip.rotary, frames))
    captured = project(layer.inner, bound)
    video = _split(clip, captured.key, captured.value, len(frames) * each).video
    sizes = [part.shape[1] * each for part in parts]
    keys, values = video.key.split(sizes, 2), video.value.split(sizes, 2)
    return ContextKeys(*(Keys(k, v) for k, v in zip(keys, values, strict=True)))
