"""One process: mode ``full`` is the stock pipeline, the dual modes are it under a mask of frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clip_cases import build, call, run
from clip_reference import FAMILIES, TEMPORAL, frame_mask, masked
from families import baseline

import hasten
from hasten._adapters.frames import FrameMixing, LayerKind
from hasten.pipelines.adapters import find
from hasten.schedules.clips import global_frames

FRAMES = 7
TOLERANCE = 1e-5
"""Largest deviation as a share of the largest value; single precision, two steps."""


def deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def attention_names(pipe: Any) -> list[str]:
    adapter = find(pipe)
    mixing = adapter.capability(FrameMixing)
    assert mixing is not None
    kinds = (LayerKind.TEMPORAL, LayerKind.ATTENTION)
    return [
        f"{denoiser}.{layer.name}"
        for denoiser in adapter.denoisers
        if getattr(pipe, denoiser, None) is not None
        for layer in mixing.layers(getattr(pipe, denoiser))
        if layer.kind in kinds
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stock(family: str) -> torch.Tensor:
    return run({"family": family, "frames": FRAMES})


def test_full_is_stock(family: str, stock: torch.Tensor) -> None:
    whole = run({"family": family, "frames": FRAMES, "options": {"mode": "full", "clips": 1}})
    assert torch.equal(whole, stock)
    for exchange in ("kv", "input"):
        options = {"mode": "full", "clips": 3, "exchange": exchange}
        divided = run({"family": family, "frames": FRAMES, "options": options})
        if family in TEMPORAL:  # group norm sums in another order
            assert deviation(divided, stock) < TOLERANCE
        else:
            assert torch.equal(divided, stock)


@pytest.mark.parametrize(
    ("halo", "count", "switch", "bias", "clips"),
    [
        (2, 3, 0.0, 2.0, 3),
        (1, 5, 1.0, 10.0, 2),
        (2, 2, 0.0, 0.0, 3),
        (3, 0, 0.0, 1.0, 2),
        (0, 4, 0.0, 10.0, 4),
    ],
    ids=["both", "local", "plain", "no-global", "no-halo"],
)
def test_dual_is_the_masked_pipeline(
    family: str, halo: int, count: int, switch: float, bias: float, clips: int
) -> None:
    pipe = build(family)
    # Flow models begin at level 1, which no switch is above.
    steps_favour_local = switch == 1.0 and family in (*TEMPORAL,)
    local, far = (bias, 0.0) if steps_favour_local else (0.0, bias)
    if switch == 1.0 and not steps_favour_local:
        switch = 0.0
    mask = frame_mask(FRAMES, halo, list(global_frames(FRAMES, count)), local, far)
    with masked(pipe, family, attention_names(pipe), mask, max(local, far)) as mode:
        expected = baseline(pipe, family, **call(family, FRAMES))
    assert mode.calls >= 2 * len(attention_names(pipe))
    options = {"halo": halo, "global_frames": count, "bias": bias, "switch": switch, "rope": "absolute"}
    for more in ({"clips": 1}, {"clips": clips, "exchange": "input"}, {"clips": clips, "exchange": "kv"}):
        latents = run({"family": family, "frames": FRAMES, "options": {**options, **more}})
        assert deviation(latents, expected) < TOLERANCE, more


def test_dual_differs_from_stock(family: str, stock: torch.Tensor) -> None:
    dual = run({"family": family, "frames": FRAMES, "options": {"halo": 1, "global_frames": 0, "clips": 2}})
    assert deviation(dual, stock) > 1e-3


@pytest.mark.parametrize("option", ["norm_sync", "conv_sync"])
def test_clips_that_are_alone_show(option: str) -> None:
    case = {"family": "text-to-video", "frames": FRAMES}
    apart = run({**case, "options": {"mode": "full", "clips": 3, option: False}})
    assert deviation(apart, run(case)) > 1e-3


def test_block_mode_sees_the_whole_clip(family: str) -> None:
    pipe = build(family)
    clips = [range(0, 4), range(4, 7)]
    mask = frame_mask(FRAMES, 0, [0, 6], 0.0, 2.0)
    for a in range(FRAMES):
        clip = next(c for c in clips if a in c)
        for b in range(max(0, clip.start - 2), min(FRAMES, clip.stop + 2)):
            mask[a, b] = 0.0
    with masked(pipe, family, attention_names(pipe), mask, 2.0):
        expected = baseline(pipe, family, **call(family, FRAMES))
    options = {"mode": "dual_block", "clips": 2, "halo": 2, "global_frames": 2, "bias": 2.0, "switch": 0.0}
    latents = run({"family": family, "frames": FRAMES, "options": {**options, "rope": "absolute"}})
    assert deviation(latents, expected) < TOLERANCE


def test_pipeline_is_clean_afterwards(family: str, stock: torch.Tensor) -> None:
    pipe = build(family)
    with hasten.accelerate(pipe, {"video_infinity": {"clips": 2, "halo": 1}}):
        baseline(pipe, family, **call(family, FRAMES))
    assert torch.equal(baseline(pipe, family, **call(family, FRAMES)), stock)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_of_stochastic_solvers_is_that_of_the_whole_video(scheduler: str) -> None:
    case = {"family": "text-to-video", "frames": FRAMES, "scheduler": scheduler}
    stock = run(case)
    other = run({**case, "options": {"mode": "full", "clips": 3}})
    assert deviation(other, stock) < TOLERANCE
