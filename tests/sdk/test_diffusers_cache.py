"""The yardstick plugin: diffusers' own caches, enabled for one call and gone after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hasten_diffusers_cache
import pytest
import torch
from families import FAMILIES

import hasten
from hasten._fingerprint import fingerprint

NEVER_REUSED: dict[str, dict[str, Any]] = {
    "pyramid": {"spatial_attention_block_skip_range": 1, "spatial_attention_timestep_skip_range": [0, 1000]},
    "taylorseer": {"cache_interval": 1, "disable_cache_before_step": 0},
    "first_block": {"threshold": 0.0},
}
REUSED: dict[str, dict[str, Any]] = {
    "pyramid": {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [0, 1000]},
    "taylorseer": {"cache_interval": 2, "disable_cache_before_step": 1},
    "first_block": {"threshold": 10.0},
}
OFF = [("wan", "taylorseer")]
"""Where the cache would be off in silence: diffusers' patterns match no layer."""
CASES = [
    (family, kind)
    for family in ("sd3", "wan", "flux")
    for kind in REUSED
    if (family, kind) not in [*OFF, ("sd3", "first_block")]
]


@pytest.fixture(autouse=True)
def plugin() -> Iterator[None]:
    """The plugin, registered for one test."""
    from hasten._plugins import host

    unregister = host().register(hasten_diffusers_cache, "hasten_diffusers_cache")
    yield
    unregister()


def cached(pipe: Any, run: Any, family: str, kind: str, options: dict[str, Any]) -> torch.Tensor:
    with hasten.accelerate(pipe, {"diffusers_cache": {"kind": kind, "options": options}}):
        result: torch.Tensor = run(pipe, family)
    return result


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_cache_that_never_reuses_changes_nothing(run: Any, family: str, kind: str) -> None:
    pipe = FAMILIES[family]()
    assert torch.equal(cached(pipe, run, family, kind, NEVER_REUSED[kind]), run(pipe, family))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_it_reuses_within_a_call_and_leaves_no_trace(run: Any, family: str, kind: str) -> None:
    pipe, control = FAMILIES[family](), FAMILIES[family]()
    plain = run(control, family)
    first, second = (cached(pipe, run, family, kind, REUSED[kind]) for _ in range(2))
    assert not torch.equal(first, plain)
    assert torch.equal(first, second)
    assert torch.equal(run(pipe, family), plain)
    run(control, family)
    run(control, family)
    assert not fingerprint(control).diff(fingerprint(pipe))


@pytest.mark.parametrize(("family", "kind"), OFF)
def test_a_cache_that_finds_no_layer_is_refused(run: Any, family: str, kind: str) -> None:
    pipe, control = FAMILIES[family](), FAMILIES[family]()
    with pytest.raises(hasten.UnsupportedError, match="finds no layer it knows"):
        cached(pipe, run, family, kind, REUSED[kind])
    assert not fingerprint(control).diff(fingerprint(pipe))


def test_layers_can_be_named(run: Any) -> None:
    pipe = FAMILIES["wan"]()
    options = REUSED["taylorseer"] | {"cache_identifiers": ["blocks.*attn1"]}
    assert not torch.equal(cached(pipe, run, "wan", "taylorseer", options), run(pipe, "wan"))


def test_an_option_that_diffusers_does_not_know_is_named() -> None:
    with pytest.raises(hasten.ConfigError, match="tresh"):
        hasten.accelerate(
            FAMILIES["wan"](), {"diffusers_cache": {"kind": "first_block", "options": {"tresh": 0.1}}}
        )


def test_a_first_block_cache_on_a_model_that_drops_its_text_is_refused() -> None:
    with pytest.raises(hasten.UnsupportedError, match="returns no text states"):
        hasten.accelerate(FAMILIES["sd3"](), {"diffusers_cache": {"kind": "first_block"}})


def test_a_registry_without_hooks_is_no_obstacle(run: Any) -> None:
    """A call of Wan leaves one, because its pipeline names the branches itself."""
    pipe, control = FAMILIES["wan"](), FAMILIES["wan"]()
    run(pipe, "wan")
    fresh = cached(control, run, "wan", "pyramid", REUSED["pyramid"])
    assert torch.equal(cached(pipe, run, "wan", "pyramid", REUSED["pyramid"]), fresh)


def test_hooks_that_are_there_already_are_refused() -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    pipe = FAMILIES["wan"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(hasten.UnsupportedError, match="has hooks of diffusers already"):
        hasten.accelerate(pipe, {"diffusers_cache": {"kind": "first_block"}})
