"""A cache that the user enabled on the denoiser: refused by name, before anything runs, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import hooks
from families import FAMILIES

import hasten
from hasten._step_caches import step_caches
from hasten._target import Target

BOTTLENECK = {"bottleneck": {"min_pixels": 1, "low_until": 0.5, "high_first": 1.0}}
CACHES: dict[str, Callable[[], Any]] = {
    "FirstBlockCache": lambda: hooks.FirstBlockCacheConfig(threshold=0.5),
    "TaylorSeerCache": lambda: hooks.TaylorSeerCacheConfig(cache_identifiers=["blocks.*attn1"]),
    "MagCache": lambda: hooks.MagCacheConfig(num_inference_steps=2, mag_ratios=torch.ones(2)),
    "PyramidAttentionBroadcast": lambda: hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    "FasterCache": lambda: hooks.FasterCacheConfig(current_timestep_callback=lambda: 500),
    "TextKVCache": hooks.TextKVCacheConfig,
}


class Remembers(hooks.ModelHook):
    """A cache of somebody else's, put on with diffusers' hooks."""

    _is_stateful = True

    def reset_state(self, module: Any) -> Any:
        return module


@pytest.fixture
def wan() -> Any:
    return FAMILIES["wan"]()


@pytest.mark.parametrize("technique", ["bottleneck", "rettention", "video_infinity"])
@pytest.mark.parametrize("cache", sorted(CACHES))
def test_the_plan_names_the_cache_and_the_way_out(wan: Any, cache: str, technique: str) -> None:
    wan.transformer.enable_cache(CACHES[cache]())
    words = rf"'{technique}' cannot be combined with the cache {cache} .*pipe\.transformer\.disable_cache\(\)"
    with pytest.raises(hasten.ConflictError, match=words):
        hasten.plan(wan, [technique])
    with pytest.raises(hasten.ConflictError, match=words):
        hasten.accelerate(wan, [technique])
    wan.transformer.disable_cache()
    hasten.accelerate(wan, [technique]).restore()


@pytest.mark.parametrize("cache", sorted(CACHES.keys() - {"FasterCache"}))
@pytest.mark.parametrize("technique", ["bottleneck", "rettention"])
def test_enabled_later_it_is_refused_on_the_next_call(wan: Any, run: Any, cache: str, technique: str) -> None:
    control = FAMILIES["wan"]()
    options = BOTTLENECK.get(technique, {})
    accel = hasten.accelerate(wan, {technique: options})
    before = run(wan, "wan", num_inference_steps=4)
    for pipe in (wan, control):
        pipe.transformer.enable_cache(CACHES[cache]())
    with pytest.raises(hasten.ConflictError, match=f"'{technique}' .*{cache}"):
        run(wan, "wan", num_inference_steps=4)
    assert cache in str(accel.report().error)
    with accel.paused():
        run(control, "wan")
        run(wan, "wan")
    wan.transformer.disable_cache()
    assert torch.equal(run(wan, "wan", num_inference_steps=4), before)
    wan.transformer.enable_cache(CACHES[cache]())
    accel.restore()
    assert torch.equal(run(wan, "wan", num_inference_steps=4), run(control, "wan", num_inference_steps=4))


def test_a_loop_of_the_users_own_is_refused_too(wan: Any) -> None:
    accel = hasten.accelerate(wan, ["bottleneck"])
    wan.transformer.enable_cache(CACHES["FirstBlockCache"]())
    with pytest.raises(hasten.ConflictError, match="FirstBlockCache"), accel.run():
        pass


def test_the_second_denoiser_is_looked_at_too() -> None:
    pipe = FAMILIES["wan22-a14b"]()
    pipe.transformer_2.enable_cache(CACHES["MagCache"]())
    with pytest.raises(hasten.ConflictError, match=r"MagCache .*pipe\.transformer_2\.disable_cache\(\)"):
        hasten.plan(pipe, ["bottleneck"])


@pytest.mark.parametrize("where", ["transformer", "transformer.blocks.0"])
def test_a_cache_that_diffusers_does_not_list_is_found(wan: Any, where: str) -> None:
    module = wan.transformer.get_submodule(where.partition(".")[2])
    registry = hooks.HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(Remembers(), "remembers")
    with pytest.raises(hasten.ConflictError, match=r"Remembers .*remove_hook\('remembers'\)"):
        hasten.plan(wan, ["rettention"])
    hooks.HookRegistry.check_if_exists_or_initialize(wan.transformer).remove_hook("remembers")
    hasten.plan(wan, ["rettention"])


def test_hooks_that_remember_nothing_are_no_cache(wan: Any, run: Any) -> None:
    run(wan, "wan")  # leaves an empty registry
    wan.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert step_caches(Target.of(wan)) == []


def test_a_technique_that_touches_nothing_the_cache_needs_may_run(wan: Any, run: Any) -> None:
    control = FAMILIES["wan"]()
    for pipe in (wan, control):
        pipe.transformer.enable_cache(CACHES["FirstBlockCache"]())
    with hasten.accelerate(wan, {"scale": {"factor": 1.0}}):
        assert torch.equal(run(wan, "wan"), run(control, "wan"))
