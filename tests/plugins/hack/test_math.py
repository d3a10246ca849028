import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hasten.plugins.hack.math import (
    HeadStatistics,
    attention_statistics,
    contextual_heads,
    evenly_spaced,
    merge_evicted,
    pick,
    scale_mass,
    subset_attention,
)
from hasten.schedules.kv_budget import kept_tokens, kv_bytes, split_budget


def attention(heads=3, queries=20, keys=50, seed=0):
    logits = torch.randn(2, heads, queries, keys, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.softmax(-1)


def test_statistics_equal_the_sum_of_column_variances():
    weights = attention().double()
    sigma, ratio, focus = attention_statistics(weights)
    for head in range(3):
        slow = sum(float(weights[b, head, :, j].var(unbiased=False)) for b in range(2) for j in range(50)) / 2
        assert float(sigma[head]) == pytest.approx(slow, rel=1e-6)
        share = sum(
            1 - float(weights[b, head].mean(0).square().sum() / weights[b, head].square().sum(1).mean())
            for b in range(2)
        )
        assert float(ratio[head]) == pytest.approx(share / 2, rel=1e-6)
        most = sum(sorted(weights[b, head].mean(0).tolist())[-5:][i] for b in range(2) for i in range(5)) / 2
        assert float(focus[head]) == pytest.approx(most, rel=1e-6)


def test_stripes_are_contextual_and_diagonals_structural_under_both_rules():
    stripes = torch.full((1, 2, 16, 32), 0.1 / 30)
    stripes[..., 3] = stripes[..., 20] = 0.45
    diagonal = torch.full((1, 2, 16, 32), 0.1 / 30)
    for i in range(16):
        diagonal[..., i, 2 * i : 2 * i + 2] = 0.45
    found = attention_statistics(torch.cat([diagonal[:, :1], stripes, diagonal[:, 1:]], 1))
    found = HeadStatistics(*(values[None] for values in found))
    for alpha in ("auto", 0.5):
        assert contextual_heads(found, alpha).tolist() == [[False, True, True, False]]


def test_a_head_that_looks_everywhere_evenly_is_not_contextual():
    """It depends on the query as little as a stripe does, but leaving keys out changes the mean it takes."""
    flat = attention_statistics(torch.full((1, 1, 16, 40), 1 / 40))
    found = HeadStatistics(*(values[None] for values in flat))
    assert float(found.ratio) == pytest.approx(0, abs=1e-5)
    assert float(found.focus) == pytest.approx(0.1, abs=1e-5)
    assert contextual_heads(found, "auto").tolist() == [[False]]


def test_the_energy_ratio_separates_sharpness_from_dependence_on_the_query():
    sharp_stripe = torch.zeros(1, 1, 8, 16)
    sharp_stripe[..., 5] = 1.0
    blurred_diagonal = torch.stack(
        [torch.roll(torch.tensor([0.25] * 4 + [0.0] * 12), 2 * i) for i in range(8)]
    )
    assert float(attention_statistics(sharp_stripe).ratio) == pytest.approx(0, abs=1e-6)
    assert float(attention_statistics(blurred_diagonal[None, None]).ratio) > 0.5


def test_subset_attention_sums_to_one_and_equals_the_dense_rows():
    query, keys = torch.randn(2, 3, 30, 8), torch.randn(2, 3, 40, 8)
    rows = evenly_spaced(30, 7)
    assert rows.tolist() == [0, 4, 9, 14, 19, 24, 29]
    assert evenly_spaced(5, 7).tolist() == [0, 1, 2, 3, 4]
    found = subset_attention(query, keys, rows)
    assert torch.allclose(found, (query @ keys.mT).softmax(-1)[:, :, rows], atol=1e-6)


def test_mass_adds_up_over_scales():
    weights = attention(keys=14)
    mass = scale_mass(weights, (1, 5, 14))
    assert torch.allclose(mass.sum(-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(mass[:, 1], weights[..., 1:5].sum(-1).mean((0, 2)), atol=1e-6)


def test_merging_equals_the_loop_and_keeps_keys_at_unit_length():
    keys, values = F.normalize(torch.randn(1, 2, 12, 6), dim=-1), torch.randn(1, 2, 12, 6)
    keep = torch.tensor([[[0, 3, 7, 9], [1, 2, 10, 11]]])
    merged_k, merged_v = merge_evicted(keys, values, keep, chunk=3)
    for h in range(2):
        kept = keep[0, h].tolist()
        sums = {j: [keys[0, h, j].clone(), values[0, h, j].clone(), 1.0] for j in kept}
        for i in set(range(12)) - set(kept):
            alike = {j: float(keys[0, h, i] @ keys[0, h, j]) for j in kept}
            best = max(alike, key=alike.__getitem__)
            m = max(0.0, alike[best])
            sums[best][0] += m * keys[0, h, i]
            sums[best][1] += m * values[0, h, i]
            sums[best][2] += m
        for slot, j in enumerate(kept):
            k, v, w = sums[j]
            assert torch.allclose(merged_v[0, h, slot], v / w, atol=1e-5)
            assert torch.allclose(merged_k[0, h, slot], F.normalize(k / w, dim=0), atol=1e-5)


def test_deterministic_picking_prefers_earlier_keys_among_equals():
    scores = torch.tensor([[[1.0, 2.0, 2.0, 2.0, 0.0]]])
    assert pick(scores, 2, True).tolist() == [[[1, 2]]]
    assert set(pick(scores, 3, False)[0, 0].tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("ratio", "few", "many"), [(0.3, 0.40, 1.0), (0.5, 0.10, 0.90), (0.7, 0.10, 0.50), (0.9, 1 / 30, 1 / 6)]
)
def test_budgets_of_the_published_operating_points(ratio, few, many):
    total = 10521
    contextual, structural = split_budget(total, kept_tokens(total, ratio), 0.5)
    assert contextual == pytest.approx(few * total, abs=2)
    assert structural == pytest.approx(many * total, abs=2)


def test_attention_flops_of_infinity_8b_at_30_percent():
    """78.54 TFLOP for the full cache, 31.5 with 10 % / 50 % for halves of the heads."""
    from hasten.schedules.scales import infinity_schedule, token_ends

    schedule = infinity_schedule(1.0)
    ends, counts = token_ends(schedule), [r * c for r, c in schedule]
    unit = 2 * 2 * 2 * 3584 * 40 / 1e12

    def total(budget):
        return unit * sum(n * min(end, budget) for n, end in zip(counts, ends))

    few, many = split_budget(10521, kept_tokens(10521, 0.7), 0.5)
    assert total(10521) == pytest.approx(78.54, abs=0.05)
    assert (total(few) + total(many)) / 2 == pytest.approx(31.48, abs=0.1)


@given(
    total=st.integers(40, 12_000),
    ratio=st.floats(0, 0.95),
    contextual=st.floats(0, 1),
    share=st.floats(0.01, 1),
)
def test_the_mean_budget_is_never_exceeded(total, ratio, contextual, share):
    mean = kept_tokens(total, ratio)
    if mean < 8:
        return
    few, many = split_budget(total, mean, contextual, share=share)
    assert 8 <= min(few, total) <= total
    assert many <= total
    # A group gets at least the minimum, also where its share of the mean would be less.
    if many > 8 and few > 8:
        assert contextual * few + (1 - contextual) * many <= mean + 1e-6


@pytest.mark.parametrize(
    ("name", "layers", "heads", "dim", "total", "past", "gib"),
    [
        ("VAR-d30", 30, 30, 64, 680, 424, (0.292, 0.182)),
        ("VAR-d36", 36, 36, 64, 2240, 1216, (1.384, 0.751)),
        ("Infinity-2B", 32, 16, 128, 10521, 6425, (5.137, 3.137)),
        ("Infinity-8B", 40, 28, 128, 10521, 6425, (11.238, 6.863)),
    ],
)
def test_bytes_of_the_published_shapes(name, layers, heads, dim, total, past, gib):
    for tokens, expected in zip((total, past), gib):
        assert kv_bytes(2, layers * heads * tokens, dim, 2) / 2**30 == pytest.approx(expected, abs=6e-4)
    reference = kv_bytes(2, layers * heads * total, dim, 3) / 2**30  # keys in 4 bytes, values in 2
    assert math.isclose(reference, gib[0] * 1.5, rel_tol=2e-3)
