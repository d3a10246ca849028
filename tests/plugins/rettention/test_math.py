"""The algebra, against attention by definition in double precision."""

from __future__ import annotations

import pytest
import torch
from slow import attention, band_mask, qkv

from hasten._adapters.tokens import TokenGrid
from hasten.plugins.rettention.math import denominator_ratio, merge, ramped, rescaled, reshape, residual

GRID = TokenGrid(1, 6, 10, before=4)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_residual_is_the_dropped_keys_share(scale):
    q, k, v = qkv(GRID, scale=scale**0.5)
    mask = band_mask(GRID, 0.3)
    full, lse = attention(q, k, v)
    kept, lse_kept = attention(q, k, v, mask)
    rho = denominator_ratio(lse_kept, lse)
    found = residual(full, kept, rho)
    assert bool((rho > 0).all() and (rho <= 1).all())
    rows = slice(GRID.before, None)
    dropped, _ = attention(q[:, :, rows], k, v, ~mask[rows])
    assert torch.allclose(found[:, :, rows], (1 - rho[:, :, rows].double()) * dropped, atol=1e-5)
    assert torch.allclose(reshape(kept, rho, found), full, atol=1e-6)
    assert torch.equal(rho[:, :, : GRID.before], torch.ones_like(rho[:, :, : GRID.before])), (
        "text sees everything"
    )
    assert found[:, :, : GRID.before].abs().max() == 0


def test_reshape_knows_what_is_left_out():
    kept, rho, rest = torch.randn(2, 3), torch.rand(2, 1), torch.randn(2, 3)
    assert torch.equal(reshape(kept, None, None), kept)
    assert torch.allclose(reshape(kept, rho, None), kept * rho)
    assert torch.allclose(reshape(kept, None, rest), kept + rest)
    half = reshape(kept.bfloat16(), rho, rest.bfloat16())
    assert half.dtype == torch.float32, "rounded once, when it is stored"


def test_ramp_grows_by_every_use_and_is_unbounded_unless_clamped():
    rho = torch.tensor([[0.3], [0.95]])
    assert ramped(rho, 0.04, 0, False) is rho
    assert torch.allclose(ramped(rho, 0.04, 3, False), torch.tensor([[0.42], [1.07]]))
    assert torch.allclose(ramped(rho, 0.04, 3, True), torch.tensor([[0.42], [1.0]]))


def test_measured_ratio_is_one_factor_per_head():
    rho = torch.tensor([0.2, 0.4, 0.3, 0.9]).view(1, 2, 2, 1)
    before, now = rho[:, :, :1], rho[:, :, :1] * torch.tensor([1.5, 2.0]).view(1, 2, 1, 1)
    assert torch.allclose(rescaled(rho, before, now).flatten(), torch.tensor([0.3, 0.6, 0.6, 1.0]))


def test_merge_is_attention_over_the_union():
    q, k, v = qkv(GRID)
    mask = torch.rand(GRID.total, GRID.total, generator=torch.Generator().manual_seed(0)) > 0.5
    first, second = (attention(q, k, v, m) for m in (mask, ~mask))
    output, lse = merge(first[0], first[1], second[0], second[1])
    expected, sums = attention(q, k, v)
    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.allclose(lse, sums)


def test_merge_with_nothing_changes_nothing():
    output, lse = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3)
    nothing = torch.full_like(lse, -torch.inf)
    merged, sums = merge(output, lse, torch.zeros_like(output), nothing)
    assert torch.allclose(merged, output)
    assert torch.equal(sums, lse)
