"""Every pair of techniques: both active, exact beside exact is stock, restored in any order; or refused."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline

import hasten
from hasten._conflicts import TESTED

EXACT: dict[str, dict[str, Any]] = {
    "bottleneck": {"low_until": 1.0, "high_first": 0.5, "min_pixels": 1},
    "cache": {"threshold": 0.0},
    "guidance_interval": {"stop": 0.0},
    "rettention": {"keep_ratio": 1.0, "warmup": 0, "min_tokens": 4},
    "video_infinity": {"clips": 1, "mode": "full"},
}
ACTIVE: dict[str, dict[str, Any]] = {
    "bottleneck": {"low_until": 0.5, "high_first": 1.0, "min_pixels": 1},
    "cache": {"threshold": 10.0},
    "guidance_interval": {"stop": 0.6},
    "rettention": {"keep_ratio": 0.3, "warmup": 1, "min_tokens": 4},
    "video_infinity": {"clips": 2, "mode": "dual", "halo": 1, "global_frames": 1},
}
REFUSED = {
    frozenset({"cache", "rettention"}): r"attention\.self",
    frozenset({"cache", "video_infinity"}): r"attention\.self",
}
"""Pairs that cannot work together, and the slot they collide in."""
PAIRS = list(permutations(EXACT, 2))
STEPS = {"num_inference_steps": 6}


def families(pair: tuple[str, str]) -> list[str]:
    if "video_infinity" in pair:
        return ["wan", "cogvideox-rope"]
    return ["sd3", "wan", "pixart-sigma"]


CASES = [(*pair, family) for pair in PAIRS for family in families(pair) if frozenset(pair) not in REFUSED]


def worked(name: str, facts: dict[str, Any]) -> bool:
    """Whether a forward's facts say that a technique did something there."""
    return {
        "bottleneck": lambda fact: fact.get("phase") == "low",
        "cache": lambda fact: fact["computed"] < fact["layers"],
        "guidance_interval": lambda fact: "skipped" in fact,
        "rettention": lambda fact: "sparse" in fact["layers"],
        "video_infinity": bool,
    }[name](facts)


@pytest.mark.parametrize(("outer", "inner", "family"), CASES)
def test_both_work_and_exact_beside_exact_is_stock(outer: str, inner: str, family: str) -> None:
    pipe = FAMILIES[family]()
    stock = baseline(pipe, family, **STEPS)
    accel = hasten.accelerate(pipe, {outer: EXACT[outer], inner: EXACT[inner]})
    torch.testing.assert_close(baseline(pipe, family, **STEPS), stock, rtol=1e-4, atol=1e-5)
    accel.remove(outer)
    accel.restore()
    accel = hasten.accelerate(pipe, {outer: ACTIVE[outer], inner: ACTIVE[inner]})
    both = baseline(pipe, family, **STEPS)
    rows = accel.report().steps
    for name in (outer, inner):
        assert any(name in row.facts and worked(name, dict(row.facts[name])) for row in rows), name
    accel.remove(inner)
    one = baseline(pipe, family, **STEPS)
    accel.restore()
    assert not torch.equal(both, one)
    assert not torch.equal(both, stock)
    assert torch.isfinite(both).all()
    assert torch.equal(baseline(pipe, family, **STEPS), stock)


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "-".join(sorted(pair)))
def test_what_cannot_work_together_is_refused_with_the_slot(pair: frozenset[str]) -> None:
    with pytest.raises(hasten.ConflictError, match=REFUSED[pair]):
        hasten.plan(FAMILIES["wan"](), {name: ACTIVE[name] for name in sorted(pair)})


@pytest.mark.parametrize("order", permutations(["aptp", "guidance_interval"]), ids=" outside ".join)
def test_pruned_experts_without_guidance_at_the_end(order: tuple[str, str]) -> None:
    pipe = hasten.load("mini/t2i-unet")
    pipe.set_progress_bar_config(disable=True)
    call = {
        "prompt": ["a large red circle on a white background", "two small blue stars on a black background"],
        "num_inference_steps": 3,
        "height": 64,
        "width": 64,
        "output_type": "latent",
    }

    def run() -> torch.Tensor:
        made: torch.Tensor = pipe(**call, generator=torch.Generator().manual_seed(0)).images
        return made

    stock = run()
    options: dict[str, Any] = {"aptp": {"route": "random"}, "guidance_interval": {"stop": 0.6}}
    with hasten.accelerate(pipe, {name: options[name] for name in order}) as accel:
        both = run()
        rows = accel.report().steps
        accel.remove("guidance_interval")
        one = run()
    assert {name for row in rows for name in row.facts} == set(order)
    assert not torch.equal(both, one)
    assert not torch.equal(both, stock)
    assert torch.isfinite(both).all()
    assert torch.equal(run(), stock)


def test_every_pair_that_is_called_tested_is() -> None:
    here = {frozenset(pair) for pair in PAIRS} - REFUSED.keys()
    assert here <= TESTED.keys()
