"""Slow and obvious: the stock pipeline in one process with a frame mask on every layer that mixes frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

FACTOR = {
    "wan": 4,
    "ltx": 8,
    "cogvideox-sincos": 4,
    "cogvideox-rope": 4,
    "cogvideox-1.5": 4,
    "hunyuan-video": 4,
}
"""Frames per latent frame."""
PATCH = {"cogvideox-1.5": 2}
"""Latent frames per temporal patch."""
FAMILIES = ("text-to-video", "animatediff", *FACTOR)
TEMPORAL = ("text-to-video", "animatediff")
JOINT = {
    "cogvideox-sincos": "first",
    "cogvideox-rope": "first",
    "cogvideox-1.5": "first",
    "hunyuan-video": "last",
    "hunyuan-video-1.5": "last",
    "hunyuan-video-1.5-i2v": "last",
    "hunyuan-i2v": "last",
    "skyreels-i2v": "last",
    "cogvideox-i2v": "first",
    "cogvideox-control": "first",
    "easyanimate": "first",
}


def pixel_frames(family: str, patches: int) -> int:
    """``num_frames`` for a number of temporal patches."""
    latent = PATCH.get(family, 1) * patches
    return FACTOR[family] * (latent - 1) + 1 if family in FACTOR else latent


def frame_mask(frames: int, halo: int, chosen: list[int], local: float, far: float) -> torch.Tensor:
    """(F, F): bias of key frame b for query frame a, entry by entry."""
    mask = torch.full((frames, frames), -math.inf)
    for a in range(frames):
        for b in chosen:
            mask[a, b] = far
        for b in range(frames):
            if abs(a - b) <= halo:
                mask[a, b] = local
    return mask


def token_mask(mask: torch.Tensor, tokens: int, text: int, place: str | None, bias: float) -> torch.Tensor:
    """The mask of frames for tokens; text sees everything, and everything sees text."""
    each = tokens // len(mask)
    video = mask.repeat_interleave(each, 0).repeat_interleave(each, 1)
    if not text:
        return video
    whole = torch.zeros(tokens + text, tokens + text)
    at = slice(text, None) if place == "first" else slice(0, tokens)
    words = slice(0, text) if place == "first" else slice(tokens, None)
    whole[at, at] = video
    whole[at, words] = bias
    return whole


class _Masked(TorchFunctionMode):
    def __init__(self, inside: list[int], family: str, mask: torch.Tensor, bias: float) -> None:
        super().__init__()
        self.inside, self.family, self.mask, self.bias = inside, family, mask, bias
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or not self.inside:
            return func(*args, **kwargs)
        self.calls += 1
        query = args[0] if args else kwargs["query"]
        place = JOINT.get(self.family)
        text = query.shape[2] - self.inside[-1] if place else 0
        bias = token_mask(self.mask, query.shape[2] - text, text, place, self.bias)
        given = kwargs.get("attn_mask")
        if given is not None:
            bias = bias + torch.where(given, 0.0, -math.inf) if given.dtype == torch.bool else bias + given
        scale = kwargs.get("scale") or query.shape[-1] ** -0.5
        key, value = args[1:3] if len(args) > 2 else (kwargs["key"], kwargs["value"])
        return (query @ key.transpose(-1, -2) * scale + bias).softmax(-1).nan_to_num() @ value


@contextmanager
def masked(pipe: Any, family: str, layers: list[str], mask: torch.Tensor, bias: float) -> Iterator[_Masked]:
    """The stock pipeline, its layers ``layers`` limited by ``mask``."""
    inside: list[int] = []
    """Video tokens of the layer in progress."""
    mode = _Masked(inside, family, mask, bias)

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inside.append((args[0] if args else kwargs["hidden_states"]).shape[1])

    with ExitStack() as stack:
        for name in layers:
            denoiser, _, path = name.partition(".")
            module = getattr(pipe, denoiser).get_submodule(path)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(lambda *_: inside.pop() and None).remove)
        stack.enter_context(mode)
        yield mode
