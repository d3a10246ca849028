"""Together with Bottleneck Sampling: statistics follow the number of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, baseline, call_kwargs

import hasten
from hasten._conflicts import TESTED

SPARSE: dict[str, Any] = {"keep_ratio": 0.3, "warmup": 1, "min_tokens": 4}
LOW: dict[str, Any] = {"low_until": 0.6, "high_first": 1.0, "min_pixels": 1}
RESTART: dict[str, Any] = {
    "mode": "restart",
    "min_pixels": 1,
    "stages": [{"steps": 3}, {"steps": 4, "scale": 0.5, "strength": 0.75}, {"steps": 4, "strength": 0.75}],
}
FAMILIES_TOGETHER = ("sd3", "flux", "pixart-sigma", "wan", "cogvideox-rope", "hunyuan-video", "sdxl")


def both(low: dict[str, Any], sparse: dict[str, Any], first: str) -> dict[str, Any]:
    pair = {"bottleneck": low, "rettention": sparse}
    return {first: pair[first], **pair}


@pytest.mark.parametrize("name", FAMILIES_TOGETHER)
@pytest.mark.parametrize("first", ["bottleneck", "rettention"])
def test_statistics_start_anew_where_the_size_changes(name, first):
    pipe = FAMILIES[name]()
    plain = baseline(pipe, name, num_inference_steps=8)
    with hasten.accelerate(pipe, both(LOW, SPARSE, first)) as acceleration:
        output = baseline(pipe, name, num_inference_steps=8)
        steps = acceleration.report().steps
    assert output.shape == plain.shape
    assert torch.isfinite(output).all()
    assert len({step.resolution for step in steps}) == 2
    seen: dict[Any, Any] = {}
    phases = set()
    for step in steps:
        phase = next(iter(step.facts["rettention"]["layers"]))
        phases.add((step.resolution[-2:], phase))
        if seen.get(step.branch) != step.resolution:
            assert phase in ("dense", "refresh"), "never sparse by the statistics of another size"
        seen[step.branch] = step.resolution
    assert {size for size, phase in phases if phase == "sparse"}
    assert torch.equal(baseline(pipe, name, num_inference_steps=8), plain)


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_keeping_everything_leaves_bottleneck_alone(name):
    pipe = FAMILIES[name]()
    with hasten.accelerate(pipe, {"bottleneck": LOW}):
        alone = baseline(pipe, name)
    with hasten.accelerate(pipe, both(LOW, {**SPARSE, "keep_ratio": 1.0}, "bottleneck")):
        assert torch.equal(baseline(pipe, name), alone)


def test_restart_stages_have_statistics_of_their_own():
    pipe = FAMILIES["sd3"]()
    with hasten.accelerate(pipe, both(RESTART, SPARSE, "bottleneck")) as acceleration:
        output = baseline(pipe, "sd3")
        steps = acceleration.report().steps
    assert torch.isfinite(output).all()
    last = None
    for step in steps:
        phase = next(iter(step.facts["rettention"]["layers"]))
        assert step.resolution == last or phase != "sparse"
        last = step.resolution


def test_the_pair_is_known_to_work():
    pipe = FAMILIES["sd3"]()
    plan = hasten.plan(pipe, both(LOW, SPARSE, "bottleneck"), **call_kwargs("sd3"))
    assert plan.untested == ()
    assert TESTED[frozenset({"bottleneck", "rettention"})] == "tests/test_pairs.py"


def test_two_techniques_on_one_layer_are_refused(monkeypatch):
    from hasten._claims import Access, Claim
    from hasten.plugins.bottleneck.plugin import Bottleneck

    monkeypatch.setattr(
        Bottleneck, "claims", lambda self, target: (Claim("attention.self", Access.EXCLUSIVE),)
    )
    with pytest.raises(hasten.ConflictError, match=r"slot 'attention\.self'"):
        hasten.accelerate(FAMILIES["sd3"](), both(LOW, SPARSE, "bottleneck"))
