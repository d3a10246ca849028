"""The formulas against slow, obvious ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clip_reference import frame_mask

from hasten.extend import attend_with_lse
from hasten.plugins.video_infinity.math import (
    entropy_scale,
    group_moments,
    merge_moments,
    merge_segments,
    normalise,
    rotate,
    scope_bias,
)
from hasten.plugins.video_infinity.reanchored import anchored_positions
from hasten.schedules.clips import Scope


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_merged_moments_are_those_of_the_union(offset: float) -> None:
    x = torch.randn(2, 8, 24, 4, 5) * 0.3 + offset
    parts = torch.stack([group_moments(part, 4) for part in x.split([7, 6, 6, 5], 2)])
    mean, variance = merge_moments(parts)
    flat = x.double().reshape(2, 4, -1)
    assert torch.allclose(mean.double(), flat.mean(2), rtol=1e-6)
    assert torch.allclose(variance.double(), flat.var(2, correction=0), rtol=1e-3)
    weight, bias = torch.randn(8), torch.randn(8)
    expected = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-6)
    merged = normalise(x, mean, variance, weight, bias, 1e-6)
    # At an offset of 1,000 single precision has 1e-4 left of the input itself.
    assert torch.allclose(merged.double(), expected, atol=1e-5 if offset == 0 else 1e-2)


def test_moments_of_half_precision_are_summed_in_single() -> None:
    x = torch.randn(1, 4, 6, 8, 8).half()
    mean, _ = merge_moments(group_moments(x, 2)[None])
    assert mean.dtype == torch.float32
    assert normalise(x, *merge_moments(group_moments(x, 2)[None]), None, None, 1e-5).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [0.0, 10.0, -10.0])
def test_merged_segments_are_attention_over_their_union(dtype: torch.dtype, bias: float) -> None:
    q, k, v = (torch.randn(2, 3, n, 16).to(dtype) for n in (5, 9, 9))
    parts = [attend_with_lse(q, k[:, :, a:b], v[:, :, a:b]) for a, b in ((0, 4), (4, 9))]
    merged = merge_segments([o for o, _ in parts], [s for _, s in parts], [0.0, bias])
    scores = q.float() @ k.float().transpose(-1, -2) / 4 + torch.tensor([0.0] * 4 + [bias] * 5)
    expected = scores.softmax(-1) @ v.float()
    assert torch.allclose(merged.float(), expected, atol=1e-6 if dtype == torch.float32 else 2e-2)
    assert merged.dtype == dtype


def test_an_empty_segment_weighs_nothing() -> None:
    q, k, v = (torch.randn(1, 2, n, 8) for n in (3, 4, 4))
    out, lse = attend_with_lse(q, k, v)
    nothing = torch.full_like(lse, -math.inf)
    assert torch.equal(merge_segments([out, torch.zeros_like(out)], [lse, nothing], [0.0, 10.0]), out)
    with pytest.raises(ValueError, match="at least one segment"):
        merge_segments([], [], [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_segments_in_every_precision(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, n, 8, dtype=dtype) for n in (3, 4, 4))
    out, lse = attend_with_lse(q, k, v, scale=0.3)
    scores = q @ k.transpose(-1, -2) * 0.3
    assert torch.allclose(out, scores.softmax(-1) @ v, atol=1e-6)
    assert torch.allclose(lse, scores.logsumexp(-1).float(), atol=1e-6)


@pytest.mark.parametrize("block", [False, True])
def test_bias_of_scopes(block: bool) -> None:
    scope = Scope(9, range(3, 6), 2, (0, 4, 8), block)
    bias = scope_bias(scope, (0.5, 3.0))
    assert bias is not None
    reference = frame_mask(9, 2, [0, 4, 8], 0.5, 3.0)
    order = [*scope.local, *scope.chosen]
    for row, frame in zip(bias.expand(3, -1), scope.clip, strict=True):
        seen = {}
        for value, key in zip(row.tolist(), order, strict=True):
            if value > -math.inf:
                assert key not in seen, "a frame counts once"
                seen[key] = value
        if block:
            assert set(seen) == {*range(1, 8), 0, 8}
        else:
            expected = {b: float(x) for b, x in enumerate(reference[frame]) if x > -math.inf}
            assert seen == expected


def test_ends_of_the_video_have_no_mass_on_missing_frames() -> None:
    scope = Scope(6, range(0, 3), 8)
    assert list(scope.local) == [0, 1, 2, 3, 4, 5]
    assert scope_bias(scope, (0.0, 0.0)) is None


def test_rotations_compose_and_keep_differences() -> None:
    angles = torch.rand(7, 8).repeat_interleave(2, -1)
    q, k = torch.randn(1, 1, 7, 16), torch.randn(1, 1, 7, 16)
    turned = rotate(rotate(q, angles.cos(), angles.sin()), angles.cos(), -angles.sin())
    assert torch.allclose(turned, q, atol=1e-6)
    step = torch.full((16,), 0.7)
    both = [rotate(x, step.cos(), step.sin()) for x in (q, k)]
    assert torch.allclose((both[0] * both[1]).sum(-1), (q * k).sum(-1), atol=1e-5)


def test_entropy_scale() -> None:
    scale = entropy_scale(Scope(30, range(10, 13), 2, (0, 29)), 16)
    assert torch.allclose(scale, torch.full((3,), math.log(7) / math.log(16)))


def test_anchored_positions_stay_in_the_table() -> None:
    for frame in range(40):
        keys = tuple(range(40))
        rows = anchored_positions(frame, keys, 4, 40, 12)
        assert min(rows) >= 0
        assert max(rows) < 12
        assert rows[frame] == 6
        for key in range(max(0, frame - 4), min(40, frame + 5)):
            assert rows[key] == 6 + key - frame


def _case(family: str) -> tuple[Any, Any]:
    from clip_cases import build

    from hasten._adapters.frames import FrameMixing
    from hasten.pipelines.adapters import find

    pipe = build(family)
    return pipe, find(pipe).capability(FrameMixing)


@pytest.mark.parametrize("family", ["wan", "ltx", "hunyuan-video"])
def test_rotary_tables_are_the_modules_own(family: str) -> None:
    """Logits of two frames do not depend on which rank computes them: the angles are the whole video's."""
    pipe, mixing = _case(family)
    module = pipe.transformer.rope
    if family == "ltx":
        whole = {"hidden_states": torch.zeros(1, 9 * 6, 8), "num_frames": 9, "height": 2, "width": 3}
        whole["rope_interpolation_scale"] = (0.32, 32, 32)
    else:
        whole = {"hidden_states": torch.zeros(1, 4, 9, 4, 6)}
    expected = module(**whole)
    part = dict(whole)
    if family == "ltx":
        part |= {"hidden_states": torch.zeros(1, 2 * 6, 8), "num_frames": 2}
    else:
        part["hidden_states"] = whole["hidden_states"][:, :, :2]
    rotary = mixing.rotary(module, module, part, 9)
    for one, other in zip(mixing.as_argument(rotary.at(range(9))), expected, strict=True):
        assert torch.equal(one, other)
    near, far = rotary.at([4.0]), rotary.at([4.0 + 1e-6])
    assert torch.allclose(near[0], far[0], atol=1e-3)
    assert torch.allclose(near[1], far[1], atol=1e-3)
