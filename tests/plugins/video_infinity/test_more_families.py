"""Families beyond those of ``test_exactness``: mode ``full`` is the stock pipeline, mode ``dual`` it under a mask."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from clip_cases import build, call, run
from clip_launch import run_cases
from clip_pipelines import PIPELINES, pixels
from clip_reference import frame_mask, masked
from families import baseline, seeded
from plan_call import Outcome, agree
from test_exactness import attention_names

from hasten.schedules.clips import global_frames

FAST = ("cosmos-2-v2w", "hunyuan-i2v", "kandinsky5", "allegro", "cogvideox-control")
"""One of each way to give positions and conditions; the others are marked slow."""
EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PIPELINES]
FRAMES = 4
TOLERANCE = 2e-5


def deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("family", EVERY)
def test_full_is_stock_and_dual_is_the_masked_pipeline(family: str) -> None:
    case = {"family": family, "frames": FRAMES}
    stock = run(case)
    assert torch.equal(run({**case, "options": {"mode": "full", "clips": 1}}), stock)
    for exchange in ("kv", "input"):
        divided = run({**case, "options": {"mode": "full", "clips": 3, "exchange": exchange}})
        assert deviation(divided, stock) < TOLERANCE
    pipe = build(family)
    names = attention_names(pipe)
    with masked(
        pipe, family, names, frame_mask(FRAMES, 1, list(global_frames(FRAMES, 2)), 0.0, 2.0), 2.0
    ) as mode:
        expected = baseline(pipe, family, **call(family, FRAMES))
    assert mode.calls >= len(names)
    options = {"halo": 1, "global_frames": 2, "bias": 2.0, "switch": 0.0, "rope": "absolute"}
    for more in ({"clips": 1}, {"clips": 3, "exchange": "input"}):
        latents = run({**case, "options": {**options, **more}})
        assert deviation(latents, expected) < TOLERANCE, more
    assert deviation(expected, stock) > 1e-3


def in_two(folder: Path, names: Collection[str]) -> None:
    """Two processes, each with a clip of its own, compute what one does."""
    cases = [{"family": name, "frames": 5, "options": {"mode": "full"}} for name in names]
    ranks = run_cases(folder, cases, 2)
    for index, name in enumerate(names):
        expected = run({"family": name, "frames": 5})
        for rank in ranks:
            latents, _, error = rank[index]
            assert error is None, name
            assert latents.shape == expected.shape
            assert deviation(latents, expected) < TOLERANCE, name


def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two(tmp_path, FAST)


@pytest.mark.slow
def test_the_pipeline_decodes_the_whole_video(tmp_path: Path) -> None:
    """Families without a decoder of their own."""
    names = ("hunyuan-i2v", "easyanimate")
    cases = [
        {"family": n, "frames": 3, "options": {"mode": "full"}, "call": {"output_type": "pt"}} for n in names
    ]
    ranks = run_cases(tmp_path, cases, 2)
    for index, name in enumerate(names):
        expected = run({**cases[index], "options": None})
        for rank in ranks:
            assert rank[index][2] is None, name
            assert rank[index][0].shape == expected.shape
            assert deviation(rank[index][0], expected) < TOLERANCE, name


@pytest.mark.slow
def test_two_processes_equal_one_in_every_family(tmp_path: Path) -> None:
    in_two(tmp_path, [name for name in PIPELINES if name not in FAST])


@pytest.mark.parametrize("family", EVERY)
def test_the_plan_says_what_the_call_does(family: str) -> None:
    pipe = build(family)
    given = {**seeded(family), **call(family, 3)}
    odd = {"num_frames": given["num_frames"] + 2} if list(pixels(family, 3)) == ["num_frames"] else {}
    cases = [
        ({}, {"mode": "full", "clips": 3}),
        ({}, {"mode": "full", "clips": 9}),
        ({}, {"clips": 2, "halo": 5}),
        (pixels(family, 1), {"mode": "full", "clips": 1}),
        (pixels(family, 1), {"mode": "full", "clips": 2}),
        (odd, {"mode": "full", "clips": 2}),
    ]
    told = []
    for changes, options in cases:
        arguments = {**given, **changes}
        stock = Outcome.of(pipe, arguments)
        told.append(agree(pipe, arguments, {"video_infinity": options}, stock))
    assert told[:3] == ["ran", "told", "told"]
    assert told[3] in ("ran", "as stock")
