"""Pipelines that nobody registered, taken by the class of their denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, baseline

import hasten
from hasten.pipelines.adapters.flux import FluxLayout

LOW = {"bottleneck": {"low_until": 0.05, "high_first": 1.0, "min_pixels": 1}}


@pytest.fixture
def stranger() -> Any:
    """FLUX under a name that no adapter knows, and not derived from it."""
    pipe = FAMILIES["flux"]()
    stock = type(pipe)
    pipe.__class__ = type("StrangerPipeline", stock.__mro__[1:2], {**vars(stock)})
    return pipe


def test_the_offer_is_made_and_has_to_be_taken(stranger: Any) -> None:
    with pytest.raises(hasten.UnsupportedError, match="family 'flux': pass allow_unverified=True"):
        hasten.plan(stranger, LOW)
    plan = hasten.plan(stranger, LOW, allow_unverified=True)
    assert "StrangerPipeline" in plan.findings[0].message
    assert "unverified" in plan.findings[0].message


def test_what_agrees_with_stock_runs(stranger: Any) -> None:
    stock = baseline(FAMILIES["flux"](), "flux")
    with hasten.accelerate(stranger, LOW, allow_unverified=True) as accel:
        assert not torch.equal(baseline(stranger, "flux"), stock)
        assert any(step.resolution != step.size for step in accel.report().steps)
    assert torch.equal(baseline(stranger, "flux"), stock)


def test_what_does_not_is_refused_in_the_first_forward(
    stranger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FluxLayout.arrange
    monkeypatch.setattr(FluxLayout, "arrange", lambda self, latent: right(self, latent).flip(1))
    with (
        hasten.accelerate(stranger, LOW, allow_unverified=True),
        pytest.raises(hasten.UnsupportedError, match="StrangerPipeline failed the self-check"),
    ):
        baseline(stranger, "flux")
