"""Statistics of a run: what is dropped, what a budget bounds, and residuals on their way from the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, call_kwargs

import hasten
from hasten._errors import UnsupportedError
from hasten.plugins.rettention.cache import Key, ResidualCache, signature

FIRST, SECOND = ("transformer.0", "both", 0, ""), ("transformer.1", "both", 0, "")


def put(cache: ResidualCache, key: Key, value: float, step: int = 0) -> tuple[Any, ...]:
    x = torch.full((1, 2, 3, 4), value)
    found = signature(x, None)
    cache.put(key, found, step, None, x)
    return found


def test_statistics_of_another_signature_are_dropped():
    cache = ResidualCache(torch.float32)
    put(cache, FIRST, 1.0)
    assert cache.get(FIRST, signature(torch.zeros(1, 2, 3, 4).double(), None)) is None
    assert len(cache) == 0


def test_statistics_of_another_denoiser_are_dropped():
    cache = ResidualCache(torch.float32)
    put(cache, FIRST, 1.0)
    put(cache, ("transformer_2.0", "both"), 1.0)
    cache.keep_only("transformer_2")
    assert len(cache) == 1


def test_more_branches_than_a_budget_was_made_for_are_refused():
    cache = ResidualCache(torch.float32, budget=150)
    put(cache, FIRST, 1.0)
    put(cache, FIRST, 2.0, step=5)
    with pytest.raises(
        UnsupportedError, match=r"take 192 bytes and cache_budget allows 150: .*'both' of transformer.1"
    ):
        put(cache, SECOND, 1.0)


class Offloaded(ResidualCache):
    """Residuals travel as copies, made when they are sent."""

    def _store(self, residual: torch.Tensor) -> torch.Tensor:
        return residual.clone()

    def _send(self, key: Key, device: torch.device) -> None:
        self._travelling[key] = (self._entries[key].residual.clone(), None)  # type: ignore[union-attr]

    def _receive(self, stored: torch.Tensor, ready: Any) -> torch.Tensor:
        return stored


def arrived(cache: ResidualCache, key: Key) -> float:
    residual = cache.residual(key)
    assert residual is not None
    return float(residual.mean())


def test_a_residual_that_was_renewed_on_its_way_is_fetched_again():
    cache = Offloaded(torch.float32, offload=True)
    for key, value in ((FIRST, 1.0), (SECOND, 2.0)):
        put(cache, key, value)
    assert [arrived(cache, key) for key in (FIRST, SECOND)] == [1.0, 2.0]  # and sends the first one again
    for key, value in ((FIRST, 3.0), (SECOND, 4.0)):
        put(cache, key, value, step=5)
    assert [arrived(cache, key) for key in (FIRST, SECOND)] == [3.0, 4.0]


def test_nothing_stays_on_its_way_when_all_is_dropped():
    cache = Offloaded(torch.float32, offload=True)
    for key in (FIRST, SECOND):
        put(cache, key, 1.0)
    arrived(cache, FIRST)
    cache.clear(0)
    assert len(cache) == 0
    assert not cache._travelling


@pytest.mark.gpu
def test_offloaded_residuals_give_the_same_picture():
    pipe = FAMILIES["pixart-sigma"]().to("cuda")
    given = {
        k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in call_kwargs("pixart-sigma").items()
    }
    outputs = []
    for offload in (False, True):
        options = {"keep_ratio": 0.3, "warmup": 0, "min_tokens": 4, "offload": offload}
        with hasten.accelerate(pipe, {"rettention": options}):
            generator = torch.Generator("cpu").manual_seed(0)
            call = {**given, "num_inference_steps": 12, "generator": generator, "return_dict": False}
            outputs.append(pipe(**call)[0])
    assert torch.equal(*outputs)
