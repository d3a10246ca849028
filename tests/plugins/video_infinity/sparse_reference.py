"""Slow and obvious: dual-scope attention whose local scope is Re-ttention, by matrices of all pairs in one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from clip_reference import JOINT
from torch import Tensor
from torch.overrides import TorchFunctionMode

RAMP = 0.04


class SparseDual(TorchFunctionMode):
    """The first step is dense and measures; the later ones are sparse within the local scope of every frame.

    Args:
        inside: names of the layers in progress.
        family: of the pipeline.
        frames: of the video.
        near: local scope of a frame.
        chosen: global frames.
        biases: of the local and the global scope.
        text: tokens of text among those of the video.
        keep_ratio: of the token-exact band.
        calls: forwards of a step.
    """

    def __init__(
        self,
        inside: list[str],
        family: str,
        frames: int,
        near: Callable[[int], range],
        chosen: list[int],
        biases: tuple[float, float],
        text: int,
        keep_ratio: float,
        calls: int,
    ) -> None:
        super().__init__()
        self.inside, self.frames, self.near, self.chosen = inside, frames, near, chosen
        self.biases, self.text, self.keep_ratio, self.each_step = biases, text, keep_ratio, calls
        self.first = JOINT.get(family) == "first"
        self.seen: dict[str, int] = {}
        self.kept: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or not self.inside:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        key, value = args[1:3] if len(args) > 2 else (kwargs["key"], kwargs["value"])
        scale = kwargs.get("scale") or query.shape[-1] ** -0.5
        layer = self.inside[-1]
        number = self.seen.get(layer, 0)
        self.seen[layer] = number + 1
        return self.attend(layer, number, query @ key.transpose(-1, -2) * scale, value)

    def attend(self, layer: str, number: int, scores: Tensor, value: Tensor) -> Tensor:
        tokens = scores.shape[-1] - self.text
        each = tokens // self.frames
        start = self.text if self.first else 0
        words = torch.arange(self.text) + (0 if self.first else tokens)
        output = scores.softmax(-1) @ value  # text sees everything

        def of(frames: Any) -> Tensor:
            return torch.cat([torch.arange(each) + start + frame * each for frame in frames])

        for frame in range(self.frames):
            rows, near = of([frame]), self.near(frame)
            parts = [self.local(layer, number, frame, scores, value, rows, of(near), each)]
            far = [other for other in self.chosen if other not in near]
            biases = [self.biases[0]]
            for columns, bias in ((of(far) if far else rows[:0], self.biases[1]), (words, max(self.biases))):
                if len(columns):
                    some = scores[:, :, rows][..., columns]
                    parts.append((some.softmax(-1) @ value[:, :, columns], some.logsumexp(-1)))
                    biases.append(bias)
            weights = torch.stack([lse + bias for (_, lse), bias in zip(parts, biases)]).softmax(0)
            output[:, :, rows] = sum(weight[..., None] * out for weight, (out, _) in zip(weights, parts))
        return output

    def local(
        self,
        layer: str,
        number: int,
        frame: int,
        scores: Tensor,
        value: Tensor,
        rows: Tensor,
        columns: Tensor,
        each: int,
    ) -> tuple[Tensor, Tensor]:
        """The output of the local scope and its log-sum-exp, exact in the first step and approximate later."""
        some, values = scores[:, :, rows][..., columns], value[:, :, columns]
        half = int(each * self.keep_ratio) // 2
        places = torch.arange(len(columns)) % each
        near = (torch.arange(each)[:, None] - places).abs() <= half
        few = some.masked_fill(~near, -math.inf)
        out, lse = few.softmax(-1) @ values, few.logsumexp(-1)
        step, branch = divmod(number, self.each_step)
        if step == 0:
            full, whole = some.softmax(-1) @ values, some.logsumexp(-1)
            rho = (lse - whole).exp()[..., None]
            self.kept[layer, branch, frame] = rho, full - rho * out
            return full, whole
        rho, rest = self.kept[layer, branch, frame]
        return (rho + RAMP * (step - 1)) * out + rest, lse - rho[..., 0].log()
