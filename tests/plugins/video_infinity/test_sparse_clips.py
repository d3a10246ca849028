"""Beside Re-ttention: clips are sparse within the frames near them, and far frames a dense segment."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from clip_cases import build, call
from clip_reference import JOINT
from families import TEXT, baseline
from sparse_reference import SparseDual
from test_exactness import attention_names, deviation

import hasten
from hasten.schedules.clips import global_frames

FRAMES = 6
STEPS = {"num_inference_steps": 3}
SPARSE = {"keep_ratio": 0.3, "warmup": 0, "period": 3, "min_tokens": 4, "mask": "reference"}
FULL = {"mode": "full", "clips": 3}
DUAL = {"mode": "dual", "halo": 1, "global_frames": 3, "bias": 2.0, "switch": 0.0, "rope": "absolute"}
TOLERANCE = 1e-4
FAMILIES = ("text-to-video", "wan", "cogvideox-rope", "hunyuan-video", "ltx")


def latents(family: str, config: dict[str, Any] | None) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    pipe = build(family)
    arguments = call(family, FRAMES, **STEPS)
    if config is None:
        return baseline(pipe, family, **arguments), []
    with hasten.accelerate(pipe, config) as accel:
        made = baseline(pipe, family, **arguments)
        return made, [dict(row.facts.get("rettention", {})) for row in accel.report().steps]


@pytest.mark.parametrize("family", FAMILIES)
def test_divided_and_sparse_is_sparse_alone(family: str) -> None:
    alone, _ = latents(family, {"rettention": SPARSE})
    orders = [("video_infinity", "rettention"), ("rettention", "video_infinity")]
    for names in orders[: 1 if family == "text-to-video" else 2]:
        options = {"video_infinity": FULL, "rettention": SPARSE}
        both, facts = latents(family, {name: options[name] for name in names})
        assert any("sparse" in fact["layers"] for fact in facts)
        assert deviation(both, alone) < TOLERANCE, names
    assert deviation(alone, latents(family, None)[0]) > 10 * TOLERANCE


@pytest.mark.parametrize("mask", ["block", "tile2d", "tile3d"])
def test_masks_with_tiles(mask: str) -> None:
    options = {**SPARSE, "mask": mask}
    alone, _ = latents("wan", {"rettention": options})
    both, facts = latents("wan", {"video_infinity": FULL, "rettention": options})
    assert any("sparse" in fact["layers"] for fact in facts)
    assert deviation(both, alone) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "mode"),
    [("wan", "dual"), ("cogvideox-rope", "dual_block"), ("hunyuan-video", "dual")],
)
def test_what_keeps_everything_is_dual_alone(family: str, mode: str) -> None:
    options = {**DUAL, "mode": mode, "clips": 2}
    alone, _ = latents(family, {"video_infinity": options})
    for exact in ({"keep_ratio": 1.0, "min_tokens": 4}, {**SPARSE, "period": 1}):
        both, facts = latents(family, {"video_infinity": options, "rettention": exact})
        assert all("sparse" not in fact["layers"] for fact in facts)
        assert torch.equal(both, alone)


@pytest.mark.parametrize("family", ["wan", "cogvideox-rope"])
@pytest.mark.parametrize(("mode", "clips"), [("dual", 1), ("dual", 3), ("dual_block", 2)])
def test_sparse_within_the_window_is_the_slow_reference(family: str, mode: str, clips: int) -> None:
    pipe = build(family)
    size = FRAMES // clips

    def near(frame: int) -> range:
        if mode == "dual":
            return range(max(0, frame - 1), min(FRAMES, frame + 2))
        start = frame // size * size
        return range(start, start + size)

    options = {**DUAL, "mode": mode, "clips": clips} | ({"halo": 0} if mode == "dual_block" else {})
    inside: list[str] = []
    reference = SparseDual(
        inside,
        family,
        FRAMES,
        near,
        list(global_frames(FRAMES, 3)),
        (0.0, 2.0),
        TEXT if family in JOINT else 0,
        SPARSE["keep_ratio"],
        calls=1 if family in JOINT else 2,
    )
    with ExitStack() as stack:
        for name in attention_names(pipe):
            module = pipe.transformer.get_submodule(name.partition(".")[2])
            stack.callback(module.register_forward_pre_hook(lambda *_, n=name: inside.append(n)).remove)
            stack.callback(module.register_forward_hook(lambda *_: inside.pop() and None).remove)
        stack.enter_context(reference)
        expected = baseline(pipe, family, **call(family, FRAMES, **STEPS))
    both, facts = latents(family, {"rettention": SPARSE, "video_infinity": options})
    assert sum("sparse" in fact["layers"] for fact in facts) == len(facts) * 2 // 3
    assert deviation(both, expected) < TOLERANCE
    dense, _ = latents(family, {"video_infinity": options})
    assert deviation(both, dense) > 10 * TOLERANCE


def test_tiles_longer_than_the_windows_of_a_few_frames_are_shortened() -> None:
    options = {**SPARSE, "mask": "tile3d", "tile": [3, 1, 2], "keep_ratio": 0.4}
    both, facts = latents("wan", {"video_infinity": {**DUAL, "clips": 2}, "rettention": options})
    assert any("sparse" in fact["layers"] for fact in facts)
    assert torch.isfinite(both).all()


def test_the_report_counts_the_layers_of_all_clips() -> None:
    one, three = (
        latents("wan", {"video_infinity": {**FULL, "clips": clips}, "rettention": SPARSE})[1]
        for clips in (1, 3)
    )
    for alone, divided in zip(one, three, strict=True):
        assert divided["layers"] == {phase: 3 * count for phase, count in alone["layers"].items()}
        assert divided["density"] == pytest.approx(alone["density"], abs=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {"correction": "residual"},
        {"correction": "none"},
        {"ramp": "measured"},
        {"drift": 0.5},
        {"cache_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_other_corrections(more: dict[str, Any]) -> None:
    both, facts = latents("wan", {"rettention": {**SPARSE, **more}, "video_infinity": {**DUAL, "clips": 2}})
    assert any("sparse" in fact["layers"] for fact in facts)
    assert torch.isfinite(both).all()


def test_restored_in_either_order() -> None:
    pipe = build("wan")
    arguments = call("wan", FRAMES, **STEPS)
    stock = baseline(pipe, "wan", **arguments)
    options = {"rettention": SPARSE, "video_infinity": {**DUAL, "clips": 2}}
    alone = {}
    for name in options:
        with hasten.accelerate(pipe, {name: options[name]}):
            alone[name] = baseline(pipe, "wan", **arguments)
    for first in options:
        accel = hasten.accelerate(pipe, options)
        assert "attention: video_infinity > rettention" in str(accel.plan)
        both = baseline(pipe, "wan", **arguments)
        accel.remove(first)
        (other,) = options.keys() - {first}
        assert torch.equal(baseline(pipe, "wan", **arguments), alone[other])
        accel.restore()
        assert not torch.equal(both, alone[other])
        assert torch.equal(baseline(pipe, "wan", **arguments), stock)
