"""A cache that never reuses changes nothing; one that does is active, dropped with its run, and leaves no trace."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline, call_kwargs

import hasten
from hasten._fingerprint import fingerprint

EXACT: dict[str, dict[str, Any]] = {
    "first_block": {"threshold": 0.0},
    "taylorseer": {"interval": 1, "warmup": 0},
    "magnitude": {"longest": 0, "ratios": "flux"},
    "pyramid": {"spatial": 1, "cross": 1, "start": 1.0, "stop": 0.0},
    "faster": {"spatial": 1, "unconditional": 1},
}
ACTIVE: dict[str, dict[str, Any]] = {
    "first_block": {"threshold": 10.0},
    "taylorseer": {"interval": 3, "warmup": 1},
    "magnitude": {"threshold": 10.0, "warmup": 0.0, "ratios": "flux"},
    "pyramid": {"spatial": 3, "start": 1.0, "stop": 0.0},
    "faster": {"spatial": 3, "unconditional": 3, "start": 1.0},
}
REFUSED = {
    ("flux", "faster"): "packs them into tokens",
    ("wan", "faster"): "both branches in one batch",
    ("sdxl", "faster"): "added_cond_kwargs",
    ("sdxl", "first_block"): "no list of at least two transformer blocks",
    ("sdxl", "magnitude"): "no list of at least two transformer blocks",
    ("flux2", "first_block"): "return different streams of tokens",
    ("ltx2", "first_block"): "do not know the outputs of LTX2VideoTransformerBlock",
    ("z-image", "first_block"): "arguments that ZImageTransformerBlock calls otherwise",
    ("pixart-alpha", "faster"): "added_cond_kwargs",
}
EVERYWHERE = ["sd3", "flux", "wan", "sdxl", "cogvideox-rope"]
BLOCKS = ["sana", "lumina2", "hunyuan-video-1.5", "hunyuan-dit"]
"""Families whose blocks diffusers does not know, so that an adapter describes them."""
CASES = [
    *((family, kind) for family in EVERYWHERE for kind in EXACT if (family, kind) not in REFUSED),
    *((family, "first_block") for family in BLOCKS),
]


def cached(pipe: Any, family: str, kind: str, options: dict[str, Any]) -> tuple[torch.Tensor, list[Any]]:
    """Latents of a call, and for every forward whether all hooked layers were computed."""
    with hasten.accelerate(pipe, {"cache": {"kind": kind, **options}}) as accel:
        made = baseline(pipe, family)
        facts = [step.facts["cache"] for step in accel.report().steps]
    return made, [fact["computed"] == fact["layers"] for fact in facts]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_exact_active_and_without_trace(family: str, kind: str) -> None:
    pipe, control = FAMILIES[family](), FAMILIES[family]()
    plain = baseline(control, family)
    exact, computed = cached(pipe, family, kind, EXACT[kind])
    assert torch.equal(exact, plain)
    assert all(computed)
    first, computed = cached(pipe, family, kind, ACTIVE[kind])
    assert not torch.equal(first, plain)
    assert not all(computed)
    assert torch.equal(cached(pipe, family, kind, ACTIVE[kind])[0], first)
    assert torch.equal(baseline(pipe, family), plain)
    for _ in range(3):
        baseline(control, family)
    assert not fingerprint(control).diff(fingerprint(pipe))


@pytest.mark.parametrize(("family", "kind"), REFUSED)
def test_what_cannot_work_is_refused_in_the_plan(family: str, kind: str) -> None:
    pipe, control = FAMILIES[family](), FAMILIES[family]()
    with pytest.raises(hasten.UnsupportedError, match=REFUSED[family, kind]):
        hasten.plan(pipe, {"cache": {"kind": kind}}, **call_kwargs(family))
    assert not fingerprint(control).diff(fingerprint(pipe))


def test_a_call_without_guidance_is_refused_where_the_kind_needs_it() -> None:
    pipe = FAMILIES["sd3"]()
    arguments = call_kwargs("sd3") | {"guidance_scale": 1.0}
    (finding, *_) = hasten.plan(pipe, {"cache": {"kind": "faster"}}, **arguments).findings
    assert finding.severity == "error"
    refused = pytest.raises(hasten.UnsupportedError, match="both branches in one batch")
    with hasten.accelerate(pipe, {"cache": {"kind": "faster"}}), refused:
        baseline(pipe, "sd3", guidance_scale=1.0)


def test_a_call_of_few_steps_and_one_that_reuses_nothing_are_told() -> None:
    pipe = FAMILIES["sd3"]()
    plan = hasten.plan(pipe, {"cache": {"threshold": 0.0}}, **call_kwargs("sd3"))
    assert any("steps are too far apart" in finding.message for finding in plan.findings)
    with hasten.accelerate(pipe, {"cache": {"threshold": 0.0}}) as accel:
        baseline(pipe, "sd3")
        assert "no layer's output was reused" in " ".join(accel.report().notes)


def test_a_compiled_denoiser_is_refused_also_when_compiled_later() -> None:
    pipe = FAMILIES["sd3"]()
    with hasten.accelerate(pipe, ["cache"]):
        pipe.transformer.compile(backend="eager")
        with pytest.raises(hasten.UnsupportedError, match=r"torch\.compile"):
            baseline(pipe, "sd3")
    with pytest.raises(hasten.UnsupportedError, match=r"torch\.compile"):
        hasten.plan(pipe, ["cache"])


def test_hooks_that_are_there_already_are_refused() -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    pipe = FAMILIES["wan"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(hasten.HastenError, match=r"FirstBlock|hooks of diffusers already"):
        hasten.accelerate(pipe, ["cache"])


def test_memory_is_dropped_after_a_failed_call() -> None:
    pipe = FAMILIES["sd3"]()

    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeError("stop")

    options = {"cache": ACTIVE["first_block"]}
    with hasten.accelerate(pipe, options):
        made = baseline(pipe, "sd3")
        with pytest.raises(RuntimeError, match="stop"):
            baseline(pipe, "sd3", callback_on_step_end=fail)
        assert torch.equal(baseline(pipe, "sd3"), made)


@pytest.mark.parametrize("kind", sorted(EXACT.keys() - {"faster"}))
def test_memory_is_dropped_when_the_size_changes(kind: str) -> None:
    """Beside ``bottleneck`` in either order: exact it changes nothing, active it computes the first step of a size."""
    pipe = FAMILIES["sd3"]()
    low = {"low_until": 0.5, "high_first": 1.0, "min_pixels": 1}
    steps = {"num_inference_steps": 6}
    with hasten.accelerate(pipe, {"bottleneck": low}):
        alone = baseline(pipe, "sd3", **steps)
    for names in (("bottleneck", "cache"), ("cache", "bottleneck")):
        for options in (EXACT[kind], ACTIVE[kind]):
            both = {"bottleneck": low, "cache": {"kind": kind, **options}}
            with hasten.accelerate(pipe, {name: both[name] for name in names}) as accel:
                made = baseline(pipe, "sd3", **steps)
                rows = accel.report().steps
            assert torch.equal(made, alone) == (options is EXACT[kind])
            changed = [i for i, row in enumerate(rows) if i == 0 or row.resolution != rows[i - 1].resolution]
            assert len(changed) == 2
            full = [row.facts["cache"]["computed"] == row.facts["cache"]["layers"] for row in rows]
            assert all(full[i] for i in changed)
            assert all(full) == (options is EXACT[kind])


def test_faster_cache_is_refused_beside_a_technique_that_changes_the_size() -> None:
    with pytest.raises(hasten.ConflictError, match=r"tokens\.shape"):
        hasten.plan(FAMILIES["sd3"](), {"bottleneck": {}, "cache": {"kind": "faster"}})


def test_with_guidance_interval_the_smaller_batch_starts_anew() -> None:
    pipe = FAMILIES["sd3"]()
    config = {"guidance_interval": {"stop": 0.5}, "cache": ACTIVE["first_block"]}
    with hasten.accelerate(pipe, config) as accel:
        baseline(pipe, "sd3", num_inference_steps=6)
        rows = accel.report().steps
    skipped = ["guidance_interval" in row.facts for row in rows]
    full = [row.facts["cache"]["computed"] == row.facts["cache"]["layers"] for row in rows]
    assert full[0]
    assert full[skipped.index(True)]
    assert not all(full)


def test_two_copies_in_two_threads_give_what_one_gives() -> None:
    """They share a denoiser, and hooks are on the modules."""
    pipe = FAMILIES["sd3"]()
    options = {"cache": ACTIVE["first_block"]}
    plain = baseline(pipe, "sd3")
    copies = [copy.copy(pipe) for _ in range(2)]
    for one in copies:
        one.scheduler = copy.deepcopy(pipe.scheduler)  # it counts the steps

    def run(one: Any) -> torch.Tensor:
        with hasten.accelerate(one, options):
            return baseline(one, "sd3")

    alone = run(pipe)
    with ThreadPoolExecutor(3) as pool:
        first, second, untouched = pool.map(
            lambda job: job(), (lambda: run(copies[0]), lambda: run(copies[1]), lambda: baseline(pipe, "sd3"))
        )
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)
    assert torch.equal(untouched, plain)


@pytest.mark.parametrize(
    ("family", "threshold", "source"),
    [
        ("flux", 0.08, "ParaAttention in the documentation of diffusers"),
        ("cogvideox-rope", 0.025, "default of ParaAttention"),
        ("hunyuan-video", 0.025, "default of ParaAttention"),
        ("sd3", 0.05, "diffusers' own, not measured for this family"),
    ],
)
def test_the_threshold_is_that_of_the_family(family: str, threshold: float, source: str) -> None:
    pipe = FAMILIES[family]()
    plan = hasten.plan(pipe, {"cache": {}}, **call_kwargs(family))
    assert any(f"threshold {threshold:g}: {source}" in finding.message for finding in plan.findings)
    with hasten.accelerate(pipe, ["cache"]):
        default = baseline(pipe, family)
    with hasten.accelerate(pipe, {"cache": {"threshold": threshold}}) as accel:
        assert not any("not measured" in finding.message for finding in accel.plan.findings)
        assert torch.equal(baseline(pipe, family), default)


def test_ratios_of_another_model_are_not_taken() -> None:
    with pytest.raises(hasten.UnsupportedError, match="nobody has measured the ratios of magnitudes"):
        hasten.accelerate(FAMILIES["wan"](), {"cache": {"kind": "magnitude"}})
    hasten.accelerate(FAMILIES["flux"](), {"cache": {"kind": "magnitude"}}).restore()
