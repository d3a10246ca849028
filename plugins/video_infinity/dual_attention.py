"""Dual-scope attention of transformers whose tokens are all positions of all frames.

The window and the global frames are separate segments of keys. Attention to each is computed by a fused kernel without
a mask, one query frame at a time if windows differ. The results are merged by log-sum-exp; a bias shifts it. Segments
without remote frames are computed before waiting for the neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.extend import AttentionCall, Proceed, attend_segment, attend_with_lse
from hasten.extend import Segment as FrameSegment
from hasten.plugins.video_infinity.clip import ClipForward
from hasten.plugins.video_infinity.math import entropy_scale, merge_segments, rotate
from hasten.schedules.clips import Scope, compressed

__all__ = ["ContextKeys", "DualAttention", "Keys", "OwnKeys"]


class Keys(NamedTuple):
    """Keys and values, (B, heads, tokens, D) each."""

    key: Tensor
    value: Tensor


class OwnKeys(NamedTuple):
    """Keys and values of the video tokens of the clip, and of text tokens if they are in the same sequence."""

    video: Keys
    text: Keys | None


class ContextKeys(NamedTuple):
    """Keys and values of the frames on both sides of the clip, and of the global frames."""

    left: Keys
    right: Keys
    chosen: Keys


Segment = tuple[Tensor, Tensor]


@dataclass
class DualAttention:
    """The attention of one clip in one layer.

    Args:
        clip: the clip.
        call: the attention call of the layer.
        proceed: computes attention within frames near each other, densely or as another technique does.
        own: keys and values of the clip.
        wait: waits for keys and values of other clips.
    """

    clip: ClipForward
    call: AttentionCall
    proceed: Proceed
    own: OwnKeys
    wait: Callable[[], ContextKeys]

    def compute(self) -> Tensor:
        """The output for all query tokens of the clip, including text."""
        self._each = self.own.video.key.shape[2] // self.clip.length
        video, text = self._queries()
        inside = self._inside(video)
        context = self.wait()
        output = self._merge(video, inside, context)
        if text is None:
            return output
        parts = [self._text_output(text, context), output]
        return torch.cat(parts if self.clip.mixing.joint == "first" else parts[::-1], 2)

    def _queries(self) -> tuple[Tensor, Tensor | None]:
        query, video = self.call.query, self._each * self.clip.length
        text = query.shape[2] - video
        if not text:
            return self._scaled(query), None
        if self.clip.mixing.joint == "first":
            return self._scaled(query[:, :, text:]), query[:, :, :text]
        return self._scaled(query[:, :, :video]), query[:, :, video:]

    def _scaled(self, query: Tensor) -> Tensor:
        if not (self.clip.config.token_scale and self.clip.trained):
            return query
        factors = entropy_scale(self.clip.scope, self.clip.trained).to(query)
        return query * factors.repeat_interleave(self._each)[:, None]

    def _attend(self, query: Tensor, keys: Keys) -> Segment:
        return attend_with_lse(query, keys.key, keys.value, self.call.scale)

    # --- local scope

    def _attend_near(self, query: Tensor, keys: Keys, near: range, rows: range) -> Segment:
        """Attention of the frames ``rows`` to the frames ``near`` around them."""
        first = near.start
        inside = range(rows.start - first, rows.stop - first)
        name = "clip" if len(rows) > 1 else f"frame {rows.start}"
        segment = FrameSegment(name, len(near), inside, self.call.query.shape[2])
        call = replace(self.call, query=query, key=keys.key, value=keys.value)
        return attend_segment(call, self.proceed, segment)

    def _inside(self, query: Tensor) -> list[Segment | None]:
        """Attention to the window for query frames that need no other clip; in block mode, attention to the clip."""
        scope = self.clip.scope
        if scope.block:
            return [self._attend_near(query, self.own.video, scope.clip, scope.clip)]
        start = scope.clip.start
        return [
            self._attend_near(
                self._frame(query, frame),
                _frames(self.own.video, near, start, self._each),
                near,
                range(frame, frame + 1),
            )
            if (near := scope.near(frame)).start >= start and near.stop <= scope.clip.stop
            else None
            for frame in scope.clip
        ]

    def _frame(self, query: Tensor, frame: int) -> Tensor:
        return query.narrow(2, (frame - self.clip.scope.clip.start) * self._each, self._each)

    def _merge(self, query: Tensor, inside: list[Segment | None], context: ContextKeys) -> Tensor:
        scope = self.clip.scope
        wide = Keys(
            *(torch.cat(parts, 2) for parts in zip(context.left, self.own.video, context.right, strict=True))
        )
        compressed_query, chosen = self._far_scope(query, context.chosen)
        if scope.block:
            local = [
                inside[0],
                *(self._attend(query, k) for k in (context.left, context.right) if k.key.shape[2]),
            ]
            return self._combine(
                query, local, compressed_query, _subset(chosen, scope, scope.clip.start, self._each)
            )
        outputs = []
        for frame, segment in zip(scope.clip, inside, strict=True):
            mine = self._frame(query, frame)
            if segment is None:
                near = _frames(wide, scope.near(frame), scope.local.start, self._each)
                segment = self._attend_near(mine, near, scope.near(frame), range(frame, frame + 1))
            far = _subset(chosen, scope, frame, self._each)
            outputs.append(self._combine(mine, [segment], self._frame(compressed_query, frame), far))
        return torch.cat(outputs, 2)

    def _combine(
        self, query: Tensor, local: Sequence[Segment | None], far_query: Tensor, far: Keys | None
    ) -> Tensor:
        segments = [segment for segment in local if segment is not None]
        near_bias, far_bias = self.clip.biases
        biases = [near_bias] * len(segments)
        if far is not None:
            segments.append(self._attend(far_query, far))
            biases.append(far_bias)
        if self.own.text is not None:
            # Text gets the bias of the favoured scope, so that the prompt keeps its weight.
            segments += [self._attend_text(query)]
            biases.append(max(self.clip.biases))
        if len(segments) == 1:
            return segments[0][0]
        outputs, sums = zip(*segments, strict=True)
        return merge_segments(outputs, sums, biases)

    # --- global scope

    def _far_scope(self, query: Tensor, chosen: Keys) -> tuple[Tensor, Keys]:
        """Queries and global keys, rotated from true positions to positions scaled to the trained length."""
        clip, scope = self.clip, self.clip.scope
        if clip.config.rotary == "absolute" or clip.rotary is None or not scope.chosen:
            return query, chosen
        if clip.trained is None or scope.frames <= clip.trained:
            return query, chosen
        turned = clip.remember("turned", lambda: (self._turn(scope.clip), self._turn(scope.chosen)))
        own, far = turned
        return self._rotate(query, own), Keys(self._rotate(chosen.key, far), chosen.value)

    def _turn(self, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angle between true and scaled positions."""
        clip = self.clip
        if clip.rotary is None:
            raise RuntimeError("only rotary positions can be scaled")
        squeezed = [compressed(frame, clip.scope.frames, clip.trained) for frame in frames]
        cos, sin = clip.rotary.at(list(frames))
        to_cos, to_sin = clip.rotary.at(squeezed)
        return to_cos * cos + to_sin * sin, to_sin * cos - to_cos * sin

    def _rotate(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        heads, dim = x.shape[1], x.shape[3]
        tables = [t.unflatten(1, (-1, dim)).transpose(0, 1) for t in turn]  # (1 or heads, T, D)
        if tables[0].shape[0] not in (1, heads):
            raise RuntimeError("rotary tables fit neither one head nor all")
        cos, sin = tables
        return rotate(x, cos, sin, halves=self.clip.rotary.halves if self.clip.rotary is not None else 0)

    # --- text among the video tokens

    def _attend_text(self, query: Tensor) -> Segment:
        """Attention to the text keys that the mask of the layer does not hide."""
        text = self.own.text
        if text is None:
            raise RuntimeError("this layer has no text tokens")
        counts = self._text_counts(text)
        if len(set(counts)) == 1:
            return self._attend(query, Keys(*(t[:, :, : counts[0]] for t in text)))
        each = [
            attend_with_lse(
                query[i : i + 1], text.key[i : i + 1, :, :n], text.value[i : i + 1, :, :n], self.call.scale
            )
            for i, n in enumerate(counts)
        ]
        return torch.cat([o for o, _ in each]), torch.cat([s for _, s in each])

    def _text_counts(self, text: Keys) -> list[int]:
        """Number of valid text tokens of every sample; padding is at the end in all families."""
        mask, length = self.call.mask, text.key.shape[2]
        if mask is None or mask.dtype != torch.bool:
            return [length] * len(text.key)

        def count() -> list[int]:
            hidden = mask[..., :length] if self.clip.mixing.joint == "first" else mask[..., -length:]
            valid: list[int] = hidden.flatten(1).view(len(hidden), -1, length).sum(-1)[:, 0].tolist()
            return valid * (len(text.key) // len(valid))

        counts: list[int] = self.clip.remember("text", count)
        return counts

    def _text_output(self, query: Tensor, context: ContextKeys) -> Tensor:
        """The output for text tokens: they attend to the whole video, or to text, clip and context."""
        if self.clip.config.text_scope == "global":
            return self._global_text(query)
        scope = self.clip.scope
        far = tuple(frame for frame in scope.chosen if frame not in scope.local)
        keys = [
            self.own.video,
            context.left,
            context.right,
            _pick(context.chosen, scope.chosen, far, self._each),
        ]
        segments = [self._attend(query, k) for k in keys if k is not None and k.key.shape[2]]
        segments.append(self._attend_text(query))
        outputs, sums = zip(*segments, strict=True)
        return merge_segments(outputs, sums, [0.0] * len(segments))

    def _global_text(self, query: Tensor) -> Tensor:
        """One text stream: in every clip, text attends to its frames, and in the first clip also to itself."""
        segments = [self._attend(query, self.own.video)]
        if self.clip.index == 0:
            segments.append(self._attend_text(query))
        outputs, sums = zip(*segments, strict=True)
        merged = merge_segments(outputs, sums, [0.0] * len(segments)).float()
        total = torch.stack([s.float() for s in sums]).logsumexp(0)
        mine = torch.cat([merged, total[..., None]], -1)
        shared = self.clip.exchange.share("text", self.clip.index, mine, mine, 2).wait().chosen
        result = merge_segments(
            [part[..., :-1] for part in shared], [part[..., -1] for part in shared], [0.0] * len(shared)
        )
        return result.to(query.dtype)


def _frames(keys: Keys, frames: range, start: int, each: int) -> Keys:
    """Tokens of ``frames`` of keys whose first frame is ``start``."""
    first, count = (frames.start - start) * each, len(frames) * each
    return Keys(*(t.narrow(2, first, count) for t in keys))


def _subset(chosen: Keys, scope: Scope, frame: int, each: int) -> Keys | None:
    return _pick(chosen, scope.chosen, scope.far(frame), each)


def _pick(keys: Keys, frames: tuple[int, ...], wanted: tuple[int, ...], each: int) -> Keys | None:
    """Tokens of the ``wanted`` frames among ``frames``; ``None`` if no frame is wanted."""
    if not wanted:
        return None
    if wanted == frames:
        return keys
    index = torch.tensor([frames.index(frame) for frame in wanted], device=keys.key.device)
    return Keys(*(t.unflatten(2, (len(frames), each)).index_select(2, index).flatten(2, 3) for t in keys))
