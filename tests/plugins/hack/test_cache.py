import pytest
import torch
from plugins_hack import DIM, HEADS, LAYERS, SCHEDULE, artefact, run

from hasten._errors import ConfigError
from hasten.pipelines.var.cache import DenseKVCache
from hasten.plugins.hack.cache import HackCache
from hasten.plugins.hack.config import HackConfig
from hasten.plugins.hack.plan import make_plan
from hasten.schedules.kv_budget import kv_bytes
from hasten.schedules.scales import INFINITY_PREFIX, INFINITY_RATIOS, infinity_schedule, token_ends

POLICIES = ("hack", "hack_plus", "scale_static", "local_scales", "streaming", "snapkv", "h2o")


def make(config, schedule=SCHEDULE):
    plan = make_plan(config, schedule, LAYERS, HEADS, artefact(schedule))
    return HackCache(config, lambda _: plan)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.85])
def test_the_mean_length_equals_the_budget_and_never_exceeds_it(policy, ratio):
    cache = make(HackConfig(policy=policy, ratio=ratio))
    lengths = run(cache)[1]
    total, past = token_ends(SCHEDULE)[-1], token_ends(SCHEDULE)[-2]
    budget = (1 - ratio) * total
    mean = sum(lengths) / (LAYERS * HEADS)
    assert mean <= budget + 1e-6
    if policy in ("streaming", "snapkv", "h2o"):
        assert mean == int(min(budget, past))


def test_nothing_to_drop_is_the_dense_result_to_the_bit():
    dense = run(DenseKVCache())[0]
    for policy in ("hack", "streaming", "snapkv", "h2o", "hack_plus"):
        plan = make_plan(HackConfig(policy=policy, ratio=0.0), SCHEDULE, LAYERS, HEADS, artefact(SCHEDULE))
        cache = HackCache(HackConfig(policy=policy, ratio=0.0), lambda _, plan=plan: plan)
        assert all(torch.equal(a, b) for a, b in zip(dense, run(cache)[0])), policy


def test_structural_heads_keep_the_first_scales_and_the_current_one():
    cache = make(HackConfig(ratio=0.5))
    seen = {}

    def look(scale):
        for (layer, number), kept in cache._kept.items():
            group = cache.plan.layers[layer][number]
            if group.kind == "structural":
                seen[scale] = [row.tolist() for row in kept.source.flatten(0, 1)]

    run(cache, after=look)
    for scale, rows in seen.items():
        rows_, columns = SCHEDULE[scale]
        for row in rows:
            assert row.count(0) == 1
            assert row.count(1) == (4 if scale else 0)
            assert row.count(scale) == rows_ * columns


def test_a_current_scale_that_does_not_fit_is_kept_in_part_and_the_first_scales_stay():
    cache = make(HackConfig(ratio=0.8))
    run(cache, stop=3)
    for (layer, number), kept in cache._kept.items():
        if cache.plan.layers[layer][number].kind == "structural":
            for row in kept.source.flatten(0, 1).tolist():
                assert row.count(0) == 1
                assert row.count(1) == 4
                assert row.count(3) >= 8  # nothing older before half of the current scale is in


def test_contextual_heads_keep_the_keys_of_the_most_attention():
    from hasten.plugins.hack.math import evenly_spaced, subset_attention

    cache = make(HackConfig(ratio=0.7))
    watched = {}
    original = cache._choose

    def choose(found, group, scores, count):
        answer = original(found, group, scores, count)
        if group.kind == "contextual" and answer is not None:
            slow = subset_attention(found.query, found.keys, evenly_spaced(found.current, 32)).sum(2)
            watched[found.scale] = [
                set(a.tolist()) == set(b.topk(count).indices.tolist())
                for a, b in zip(answer.flatten(0, 1), slow.flatten(0, 1))
            ]
        return answer

    cache._choose = choose
    run(cache)
    assert watched
    assert all(all(rows) for rows in watched.values())


def test_rows_of_a_batch_do_not_touch_each_other():
    together = run(make(HackConfig(ratio=0.7)), rows=4)[0]
    for row in range(4):
        alone = run(make(HackConfig(ratio=0.7)), rows=4, only=row)[0]
        assert all(torch.allclose(a[row : row + 1], b, atol=1e-6) for a, b in zip(together, alone))


def test_permuting_heads_and_labels_together_changes_nothing():
    order = torch.tensor([2, 0, 3, 1])
    config = HackConfig(ratio=0.7)
    straight = run(make(config))[0]
    plan = make_plan(config, SCHEDULE, LAYERS, HEADS, artefact(SCHEDULE, order))
    permuted = run(HackCache(config, lambda _: plan), order=order)[0]
    assert all(torch.allclose(a[:, order], b, atol=1e-6) for a, b in zip(straight, permuted))


@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.85])
def test_bytes_held_equal_the_formula(ratio):
    cache = make(HackConfig(ratio=ratio))
    peaks = []
    run(cache, rows=2, dtype=torch.bfloat16, after=lambda scale: peaks.append(cache.nbytes))
    tokens = max(cache.plan.stored_tokens(k) for k in range(len(SCHEDULE) - 1))
    formula = kv_bytes(2, tokens, DIM, 2)
    slots = 2 * tokens  # one byte a slot for the scale a key came from
    assert max(peaks) == formula + slots
    assert cache.peak >= max(peaks)


def test_eight_bits_halve_the_bytes_at_a_small_error():
    exact, small = make(HackConfig(ratio=0.0)), make(HackConfig(ratio=0.0, kv_bits=8))
    a, b = run(exact, rows=2)[0], run(small, rows=2)[0]
    assert all(float((x - y).abs().mean()) < 0.02 for x, y in zip(a, b))
    assert small.peak < 0.45 * exact.peak  # against four bytes, with the factors


def test_separate_budgets_store_less_than_they_read():
    cache = make(HackConfig(policy="hack_plus", ratio=0.5, cache_ratio=0.85))
    lengths = run(cache)[1]
    assert sum(lengths) / (LAYERS * HEADS) <= 0.15 * token_ends(SCHEDULE)[-1] + 2
    assert max(g.attention for groups in cache.plan.layers for g in groups) > max(lengths)


def test_local_scales_keeps_the_first_and_the_last_whole():
    cache = make(HackConfig(policy="local_scales", ratio=0.3, local_window=1, initial_scales=1))
    run(cache, stop=3)
    assert {
        tuple(sorted(set(row))) for k in cache._kept.values() for row in k.source.flatten(0, 1).tolist()
    } == {(0, 3)}
    assert cache.plan.stored_tokens(3) == LAYERS * HEADS * (1 + 16)
    assert cache.plan.read_tokens(3) == LAYERS * HEADS * (1 + 9 + 16)


def test_merging_at_the_last_scale_changes_contextual_heads_only():
    plain, merged = run(make(HackConfig(ratio=0.7)))[0], run(make(HackConfig(ratio=0.7, merge="last")))[0]
    labels = artefact(SCHEDULE).statistics.ratio < 0.5
    scales = len(SCHEDULE)
    for layer in range(LAYERS):
        a, b = plain[(scales - 1) * LAYERS + layer], merged[(scales - 1) * LAYERS + layer]
        for head in range(HEADS):
            assert torch.equal(a[:, head], b[:, head]) != bool(labels[layer, head])
    assert all(torch.equal(a, b) for a, b in zip(plain[: (scales - 1) * LAYERS], merged))


@pytest.mark.parametrize("resolution", INFINITY_PREFIX)
def test_every_infinity_schedule_has_a_plan(resolution):
    for ratio in INFINITY_RATIOS:
        schedule = infinity_schedule(ratio, resolution)
        for policy in POLICIES:
            for rho in (0.5, 0.7, 0.9):
                plan = make_plan(
                    HackConfig(policy=policy, ratio=rho), schedule, LAYERS, HEADS, artefact(schedule)
                )
                total = token_ends(schedule)[-1]
                assert plan.stored_tokens(len(schedule) - 2) <= LAYERS * HEADS * (1 - rho) * total + 1
                for groups in plan.layers:
                    assert sorted(h for group in groups for h in group.heads) == list(range(HEADS))


def test_a_budget_below_the_minimum_is_refused_with_the_largest_ratio():
    with pytest.raises(ConfigError, match=r"leaves 3 of 66 tokens.*0.879 at most"):
        make(HackConfig(ratio=0.95))
