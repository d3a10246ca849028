"""Temporal attention with a short table of positions, for more frames than the table has.

Every query gets the middle position of the table. Every key gets the position whose distance from the middle is the
distance of its frame from the frame of the query; distances outside the window are scaled to fit into the table. The
embedding is added before a linear projection, so inputs and rows of the table are projected once, and added:
``k_ab = W_k x_b + W_k pe[c + b - a]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.extend import AttentionCall
from hasten.plugins.video_infinity.capture import Projections, project
from hasten.plugins.video_infinity.clip import ClipForward, LayerCall
from hasten.plugins.video_infinity.dual_attention import ContextKeys, Keys

__all__ = ["anchored_positions", "reanchored_attention"]


def anchored_positions(frame: int, keys: tuple[int, ...], halo: int, frames: int, rows: int) -> list[int]:
    """Table rows of ``keys`` relative to ``frame``: true differences within ``halo``, scaled ones beyond.

    Args:
        frame: frame of the query.
        keys: frames of the keys.
        halo: largest true difference; at most ``rows // 2 - 1``.
        frames: number of frames of the video.
        rows: rows of the table.
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
    clip: ClipForward, layer: LayerCall, call: AttentionCall, own: Keys, context: ContextKeys
) -> Tensor:
    """Attention of one clip, one query frame at a time.

    Args:
        clip: the clip.
        layer: the attention layer; its input has no positions added.
        call: query (B*H*W, heads, n, D) of the clip.
        own: keys and values of the clip.
        context: keys and values of halos and global frames.
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


def _project_table(clip: ClipForward, layer: LayerCall) -> Projections:
    """Projections of the position table, (1, heads, rows, D) each."""
    if clip.table is None:
        raise RuntimeError("the position table of an attention layer is not known")
    return project(
        layer.inner, {**layer.bound, "hidden_states": clip.table.to(layer.bound["hidden_states"].dtype)}
    )
