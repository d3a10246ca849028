"""Two and four gloo processes compute what one does: uneven, several clips per rank, both branches apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clip_cases import build, call, run
from clip_launch import run_cases
from families import baseline

from hasten._adapters.frames import FrameMixing, LayerKind
from hasten.pipelines.adapters import find
from hasten.plugins.video_infinity.cost import attention_bytes, norm_bytes

TOLERANCE = 1e-5
SCOPE: dict[str, Any] = {"halo": 2, "global_frames": 5, "bias": 2.0, "switch": 0.0, "exchange": "input"}
DUAL = [
    ("wan", 7),
    ("text-to-video", 7),
    ("animatediff", 16),
    ("ltx", 7),
    ("cogvideox-rope", 7),
    ("hunyuan-video", 7),
]
"""The tiny AnimateDiff has 12 positions, so 16 frames are anchored anew."""


def case(family: str, frames: int, options: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"family": family, "frames": frames, "options": options, **more}


def deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def two() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, case for two ranks, and the case that one process runs for comparison."""
    listed = []
    for family, frames in DUAL:
        dual = case(family, frames, {**SCOPE, "trained_frames": 4})
        listed.append((f"{family} dual", dual, {**dual, "options": {**dual["options"], "clips": 1}}))
        if frames == 7:
            listed.append((f"{family} full", case(family, 7, {"mode": "full"}), case(family, 7, None)))
    several = case("wan", 11, {**SCOPE, "clips": 5, "mode": "dual_block", "halo": 1})
    listed.append(("several clips", several, several))
    words = {**several, "family": "hunyuan-video", "options": {**several["options"], "text_scope": "clip"}}
    listed.append(("text of clips", words, words))
    noisy = case("text-to-video", 7, {"mode": "full"}, scheduler="DPMSolverMultistepScheduler")
    listed.append(("noise", noisy, {**noisy, "options": None}))
    for family in ("wan", "text-to-video", "cogvideox-rope", "animatediff"):
        branches = case(family, 5, {"mode": "full", "cfg_ranks": 2}, call={"guidance_scale": 4.0})
        listed.append((f"branches {family}", branches, {**branches, "options": None}))
    videos = case("wan", 7, {**SCOPE, "clips": 2, "data_ranks": 2})
    listed.append(("a video each", videos, {**videos, "options": {**SCOPE, "clips": 2}}))
    words = {**SCOPE, "clips": 2, "prompts": ["day", "night"]}
    for family in ("wan", "animatediff"):
        told = case(family, 6, {**words, "cfg_ranks": 2}, call={"guidance_scale": 4.0, "prompt": "ignored"})
        listed.append((f"prompts and branches {family}", told, {**told, "options": words}))
    return listed


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, Any, Any]]]:
    """What both ranks got, by name of the case."""
    names = [name for name, _, _ in two()]
    ranks = run_cases(tmp_path_factory.mktemp("two"), [c for _, c, _ in two()] + REFUSED, 2)
    names += [f"refused {index}" for index in range(len(REFUSED))]
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(names)}


REFUSED = [
    case("wan", 1, {"mode": "full"}),
    case("wan", 7, {"halo": 4}),
    case("wan", 7, {"clips": 1}),
    case("hunyuan-video", 7, {"mode": "full", "cfg_ranks": 2}),
]
REASONS = [
    "ConfigError: 1 latent frames cannot occupy 2 processes",
    "ConfigError: halo=4 is longer than the shortest of 2 clips, 3 frames",
    "ConfigError: 1 clips cannot occupy 2 processes; start at most 1",
    "UnsupportedError: cfg_ranks=2 divides the branches",
]


@pytest.mark.parametrize("index", range(len(two())), ids=[name for name, _, _ in two()])
def test_two_processes_equal_one(index: int, outcome: dict[str, list[tuple[Any, Any, Any]]]) -> None:
    name, _, alone = two()[index]
    expected = run(alone)
    for latents, _, error in outcome[name]:
        assert error is None
        assert deviation(latents, expected) < TOLERANCE
    assert torch.equal(outcome[name][0][0], outcome[name][1][0])


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_bad_input_is_refused_on_every_rank(
    index: int, outcome: dict[str, list[tuple[Any, Any, Any]]]
) -> None:
    for latents, _, error in outcome[f"refused {index}"]:
        assert latents is None
        assert error.startswith(REASONS[index])


def test_bytes_are_those_of_the_formulas(outcome: dict[str, list[tuple[Any, Any, Any]]]) -> None:
    """Halos of ``h`` frames and shares of ``G``, counted from the shapes of every layer."""
    batch, channels, tokens, layers, size = 1, 32, 4 * 6, 2, 4
    # Rank 0 holds frames 0 to 3, and with them 0, 2 and 3 of the global frames 0, 2, 3, 4, 6.
    each = attention_bytes(batch * tokens * channels * size, SCOPE["halo"], (3, 2), 1)
    for rank in outcome["wan dual"]:
        assert rank[1][0]["bytes"] == {"attention": [layers * each, layers * each]}
    unet = outcome["text-to-video dual"][0][1][0]["bytes"]
    assert set(unet) == {"norm", "norm and conv", "temporal attention"}
    alone, read = inputs_of_norms()
    assert unet["norm"] == [len(alone) * norm_bytes(2, 4, 2)] * 2
    # A convolution over three frames reaches one frame of the neighbour.
    frames = [shape.numel() // shape[2] * size for shape in read]
    assert unet["norm and conv"] == [sum(frames) + len(read) * norm_bytes(2, 4, 2)] * 2


def inputs_of_norms() -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes that the norms over frames get in a forward: where no convolution reads them, and where one does."""
    pipe = build("text-to-video")
    mixing = find(pipe).capability(FrameMixing)
    assert mixing is not None
    seen: dict[bool, list[torch.Size]] = {False: [], True: []}
    for layer in mixing.layers(pipe.unet):
        if layer.kind is LayerKind.NORM:
            module = pipe.unet.get_submodule(layer.name)
            found = seen[layer.reader is not None]
            module.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0].shape))
    baseline(pipe, "text-to-video", **call("text-to-video", 7, num_inference_steps=1))
    return seen[False], seen[True]


OTHER = {rank: {"call": {"guidance_scale": 4.0 if rank < 2 else 6.0}} for rank in range(4)}
"""Two videos at a time, each of two processes."""


@pytest.mark.slow
def test_four_processes_and_one(tmp_path: Path) -> None:
    cases = [
        case("wan", 9, {**SCOPE, "trained_frames": 4}),
        case("text-to-video", 9, {**SCOPE, "clips": 4}),
        case("text-to-video", 9, {"mode": "full", "clips": 5}),
        case("wan", 6, {**SCOPE, "cfg_ranks": 2}, call={"guidance_scale": 4.0}),
        case("cogvideox-rope", 6, {**SCOPE, "data_ranks": 2}, each=OTHER),
        case("wan", 6, {**SCOPE, "clips": 2, "data_ranks": 2, "cfg_ranks": 2}, each=OTHER),
    ]
    alone = [
        case("wan", 9, {**SCOPE, "trained_frames": 4}),
        case("text-to-video", 9, {**SCOPE, "clips": 1}),
        case("text-to-video", 9, None),
        case("wan", 6, SCOPE, call={"guidance_scale": 4.0}),
    ]
    videos = [
        [case(family, 6, SCOPE, call={"guidance_scale": scale}) for scale in (4.0, 6.0)]
        for family in ("cogvideox-rope", "wan")
    ]
    ranks = run_cases(tmp_path, cases, 4)
    for index, one in enumerate(alone):
        expected = run(one)
        for rank in ranks:
            assert rank[index][2] is None, rank[index][2]
            assert deviation(rank[index][0], expected) < TOLERANCE
    for index, pair in enumerate(videos, len(alone)):
        made = [run(video) for video in pair]
        assert deviation(made[0], made[1]) > 1e-3
        for number, rank in enumerate(ranks):
            assert rank[index][2] is None, rank[index][2]
            assert deviation(rank[index][0], made[number // 2]) < TOLERANCE
