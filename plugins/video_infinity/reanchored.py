"""Temporal attention with a short table of positions, for more frames than the table has.

Every query is given the table's middle position, and a key the position as far from the middle as the key's frame is
from the query's; frames outside the window are squeezed into the table. The embedding is added before a linear
projection, so projections of inputs and of the table's rows are computed once and added:
``k_ab = W_k x_b + W_k pe[c + b - a]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.extend import AttentionCall
from hasten.plugins.video_infinity.capture import Projections, project
from hasten.plugins.video_infinity.clip import ClipForward, Layer
from hasten.plugins.video_infinity.dual import ContextKeys, Keys

__all__ = ["anchored_positions", "reanchored_attention"]


def anchored_positions(frame: int, keys: tuple[int, ...], halo: int, frames: int, rows: int) -> list[int]:
    """Table rows of ``keys`` as seen from ``frame``: true differences within ``halo``, squeezed ones beyond.

    Args:
        frame: the query's frame.
        keys: frames of the keys.
        halo: differences up to this are true; at most ``rows // 2 - 1``.
        frames: frames of the video.
        rows: entries of the table.
    """
    centre = rows // 2
    room = rows - 1 - centre
    places = []
    for key in keys:
        difference = key - frame
        if abs(difference) > halo:
            squeezed = round(abs(difference) * room / (frames - 1))
            difference = max(squeezed, min(halo + 1, room)) * (1 if difference > 0 else -1)
        places.append(centre + difference)
    return places


def reanchored_attention(
    clip: ClipForward, layer: Layer, call: AttentionCall, own: Keys, context: ContextKeys
) -> Tensor:
    """Attention of one clip, one query frame at a time.

    Args:
        clip: the clip.
        layer: the attention layer; its input carries no positions.
        call: query (B*H*W, heads, n, D) of the clip.
        own: keys of the clip.
        context: keys of halos and global frames.
    """
    scope = clip.scope
    table = clip.remember(f"table of {call.layer}", lambda: _project_table(clip, layer))
    rows = table.query.shape[2]
    keys = torch.cat([context.left.key, own.key, context.right.key, context.chosen.key], 2)
    values = torch.cat([context.left.value, own.value, context.right.value, context.chosen.value], 2)
    order = (*scope.local, *scope.chosen)
    outputs = []
    for place, frame in enumerate(scope.clip):
        near, far = scope.near(frame), scope.far(frame)
        index = [frame_ - scope.local.start for frame_ in near]
        index += [len(scope.local) + scope.chosen.index(other) for other in far]
        at = anchored_positions(frame, tuple(order[i] for i in index), scope.halo, scope.frames, rows)
        bias = [clip.biases[0]] * len(near) + [clip.biases[1]] * len(far)
        query = call.query[:, :, place : place + 1] + table.query[:, :, rows // 2 : rows // 2 + 1]
        mask = query.new_tensor(bias)[None] if any(bias) else None
        outputs.append(
            F.scaled_dot_product_attention(
                query,
                keys[:, :, index] + table.key[:, :, at],
                values[:, :, index] + table.value[:, :, at],
                attn_mask=mask,
                scale=call.scale,
            )
        )
    return torch.cat(outputs, 2)


def _project_table(clip: ClipForward, layer: Layer) -> Projections:
    """Projections of the position table, (1, heads, rows, D) each."""
    if clip.table is None:
        raise RuntimeError("the position table of an attention layer is not known")
    return project(
        layer.inner, {**layer.bound, "hidden_states": clip.table.to(layer.bound["hidden_states"].dtype)}
    )
