"""Intervals, tests and decisions against hand values, textbook formulas and simulated coverage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jackknife import grouped_jackknife
from scipy import stats

from hasten._errors import ConfigError
from hasten.eval.statistics import (
    Estimate,
    assign_groups,
    holm,
    jackknife_estimate,
    mean_estimate,
    minimal_detectable_effect,
    non_inferiority,
    paired_difference,
    paired_ratio_difference,
    paired_tests,
    pairs_needed,
    proportion,
    ratio_of_sums,
    wilson,
)


class TestPairedDifference:
    def test_coverage(self) -> None:
        rng = np.random.default_rng(11)
        hits = 0
        for seed in range(500):
            base = rng.normal(size=60)
            candidate = base + rng.normal(0.3, 1.0, size=60)
            interval = paired_difference(base, candidate, seed=seed, resamples=399)
            hits += interval.low <= 0.3 <= interval.high
        assert 0.93 <= hits / 500 <= 0.97

    def test_value_and_standard_error(self) -> None:
        rng = np.random.default_rng(1)
        base, candidate = rng.normal(size=(2, 200))
        figure = paired_difference(base, candidate)
        difference = candidate - base
        assert figure.value == pytest.approx(difference.mean())
        assert figure.se == pytest.approx(difference.std(ddof=1) / math.sqrt(200), rel=0.05)
        assert (figure.n, figure.clusters) == (200, 200)

    def test_pairing_narrows_the_interval(self) -> None:
        rng = np.random.default_rng(2)
        base = rng.normal(0, 10, size=100)
        paired = paired_difference(base, base + rng.normal(0.5, 0.5, size=100))
        unpaired = paired_difference(base, rng.permutation(base) + 0.5)
        assert paired.high - paired.low < (unpaired.high - unpaired.low) / 5

    def test_clusters_widen_the_interval(self) -> None:
        rng = np.random.default_rng(3)
        prompts = np.repeat(np.arange(30), 4)
        difference = rng.normal(size=30)[prompts] + rng.normal(0, 0.1, size=120)
        clustered = mean_estimate(difference, clusters=list(prompts))
        alone = mean_estimate(difference)
        assert clustered.clusters == 30
        assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)

    def test_uneven_clusters_weigh_by_samples(self) -> None:
        figure = mean_estimate([1, 1, 1, 5], clusters=["a", "a", "a", "b"])
        assert figure.value == 2

    def test_same_seed_same_bits(self) -> None:
        base, candidate = np.random.default_rng(4).normal(size=(2, 40))
        first, again, other = (paired_difference(base, candidate, seed=s) for s in (7, 7, 8))
        assert first == again
        assert first != other

    @pytest.mark.parametrize("shift", [0.0, 0.1, -3.0])
    def test_equal_differences(self, shift: float) -> None:
        base = np.random.default_rng(5).normal(size=20)
        figure = paired_difference(base, base + shift)
        assert figure.value == pytest.approx(shift)
        assert (figure.low, figure.high) == (figure.value, figure.value)
        assert figure.method == "constant"

    def test_one_cluster_bounds_nothing(self) -> None:
        figure = paired_difference([1.0, 2.0], [2.0, 4.0], clusters=["p", "p"])
        assert (figure.low, figure.high) == (-math.inf, math.inf)
        assert json.loads(json.dumps(figure.as_dict()))["low"] is None

    def test_two_values_never_give_nan(self) -> None:
        for ones in range(1, 6):
            figure = mean_estimate([1.0] * ones + [0.0] * (6 - ones))
            assert figure.low <= figure.value <= figure.high

    def test_bad_input(self) -> None:
        with pytest.raises(ConfigError, match="has 3 scores"):
            paired_difference([1, 2, 3], [1, 2])
        with pytest.raises(ConfigError, match="first at index 1"):
            paired_difference([1, 2], [1, math.nan])
        with pytest.raises(ConfigError, match="non-empty"):
            mean_estimate([])
        with pytest.raises(ConfigError, match="1 cluster labels"):
            mean_estimate([1, 2], clusters=["a"])
        with pytest.raises(ConfigError, match="level"):
            mean_estimate([1, 2], level=95)


class TestTests:
    def test_hand_values(self) -> None:
        result = paired_tests([0, 0, 0, 0], [1, 2, 3, 0])
        assert (result.wins, result.ties, result.losses) == (3, 1, 0)
        # Of the 8 sign patterns of 1, 2, 3 (the tie flips nothing) only two reach a total of 6.
        assert result.p_sign_flip == pytest.approx(2 / 8)
        assert result.effect_size == pytest.approx(1.5 / np.std([1, 2, 3, 0], ddof=1))

    def test_many_pairs_agree_with_the_t_test(self) -> None:
        rng = np.random.default_rng(0)
        base = rng.normal(size=80)
        candidate = base + rng.normal(0.2, 1, size=80)
        result = paired_tests(base, candidate)
        assert result.p_sign_flip == pytest.approx(stats.ttest_rel(base, candidate).pvalue, abs=0.02)
        assert result.p_wilcoxon == pytest.approx(stats.wilcoxon(candidate - base).pvalue)

    def test_nothing_differs(self) -> None:
        result = paired_tests([1, 2], [1, 2])
        assert (result.p_sign_flip, result.p_wilcoxon, result.effect_size) == (1, 1, 0)


class TestProportions:
    def test_wilson(self) -> None:
        # Newcombe (1998), table I: 81 of 263.
        low, high = wilson(81, 263)
        assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
        assert wilson(0, 20)[0] == 0
        assert wilson(0, 20)[1] == pytest.approx(0.1611, abs=1e-4)
        assert wilson(20, 20)[1] == 1
        with pytest.raises(ConfigError):
            wilson(3, 2)

    def test_independent_answers(self) -> None:
        answers = [1] * 15 + [0] * 5
        figure = proportion(answers)
        assert figure.value == 0.75
        low, high = wilson(15, 20)
        assert (figure.low, figure.high) == pytest.approx((low, high), abs=0.01)

    def test_answers_that_stand_and_fall_together_count_once(self) -> None:
        right = [4] * 15 + [0] * 5
        figure = ratio_of_sums(right, [4] * 20)
        alone = proportion([1] * 15 + [0] * 5)
        assert figure.value == 0.75
        assert (figure.low, figure.high) == pytest.approx((alone.low, alone.high))

    def test_all_right(self) -> None:
        figure = ratio_of_sums([3] * 10, [3] * 10)
        assert figure.value == 1
        assert figure.low == pytest.approx(wilson(10, 10)[0])

    def test_coverage_with_clusters(self) -> None:
        rng = np.random.default_rng(0)
        hits = 0
        for _ in range(400):
            skill = rng.beta(4, 2, size=60)  # mean 2/3, varies by prompt
            asked = rng.integers(1, 6, size=60)
            figure = ratio_of_sums(rng.binomial(asked, skill), asked)
            hits += figure.low <= 2 / 3 <= figure.high
        assert 0.92 <= hits / 400 <= 0.985

    def test_difference(self) -> None:
        rng = np.random.default_rng(1)
        asked = rng.integers(1, 5, size=80)
        base, candidate = rng.binomial(asked, 0.9), rng.binomial(asked, 0.6)
        figure = paired_ratio_difference(base, candidate, asked)
        assert figure.value == pytest.approx((candidate.sum() - base.sum()) / asked.sum())
        assert figure.high < 0
        assert figure.excludes_zero

    def test_no_discordant_prompt_is_no_proof_of_equality(self) -> None:
        figure = paired_ratio_difference([3] * 50, [3] * 50, [3] * 50)
        assert figure.value == 0
        assert figure.high == pytest.approx(1 - 0.025 ** (1 / 50))
        assert figure.low == -figure.high

    def test_constant_difference_and_single_cluster(self) -> None:
        assert paired_ratio_difference([2, 2], [1, 1], [2, 2]).method == "constant"
        assert paired_ratio_difference([2], [1], [2]).low == -1

    def test_bad_counts(self) -> None:
        with pytest.raises(ConfigError, match="sample 1 has 4 right answers of 3"):
            ratio_of_sums([1, 4], [3, 3])
        with pytest.raises(ConfigError, match="no question"):
            ratio_of_sums([0], [0])
        with pytest.raises(ConfigError, match="baseline has 2 samples"):
            paired_ratio_difference([1, 1], [1], [1, 1], candidate_asked=[1])


class TestJackknife:
    def test_mean_gives_the_textbook_error(self) -> None:
        values = np.random.default_rng(0).normal(size=31)
        figure = grouped_jackknife(lambda keep: float(values[keep].mean()), np.arange(31))
        expected = values.std(ddof=1) / math.sqrt(31)
        assert figure.value == pytest.approx(values.mean())
        assert figure.se == pytest.approx(expected, rel=1e-9)
        half = stats.t.ppf(0.975, 30) * expected
        assert (figure.low, figure.high) == pytest.approx((figure.value - half, figure.value + half))

    @settings(max_examples=30, deadline=None)
    @given(st.integers(2, 200), st.integers(2, 40), st.integers(0, 99))
    def test_groups(self, n: int, groups: int, seed: int) -> None:
        labels = [i // 3 for i in range(n)]
        clusters = max(labels) + 1
        if clusters < 2:
            return
        of = assign_groups(n, groups, clusters=labels, seed=seed)
        assert set(of) == set(range(min(groups, clusters)))
        for label in set(labels):
            assert len({g for g, other in zip(of, labels) if other == label}) == 1
        per_group = [len({labels[i] for i in np.flatnonzero(of == g)}) for g in set(of)]
        assert max(per_group) - min(per_group) <= 1
        assert np.array_equal(of, assign_groups(n, groups, clusters=labels, seed=seed))

    def test_bad_input(self) -> None:
        with pytest.raises(ConfigError, match="two groups"):
            assign_groups(3, clusters=["a"] * 3)
        with pytest.raises(ConfigError, match="two groups"):
            jackknife_estimate(1.0, [1.0], n=5)


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 50, 50, 0.1, 0.95, "test")


class TestDecisions:
    @pytest.mark.parametrize(
        ("low", "high", "higher", "outcome"),
        [
            (-0.1, 0.3, True, "held"),
            (-0.3, 0.3, True, "undecided"),
            (-0.9, -0.3, True, "missed"),
            (-0.3, 0.1, False, "held"),
            (-0.3, 0.3, False, "undecided"),
            (0.3, 0.9, False, "missed"),
            (-math.inf, math.inf, True, "undecided"),
        ],
    )
    def test_non_inferiority(self, low: float, high: float, higher: bool, outcome: str) -> None:
        verdict = non_inferiority(interval(low, high), 0.2, higher_is_better=higher)
        assert verdict.outcome == outcome
        assert verdict.worst == (low if higher else high)

    def test_margin(self) -> None:
        with pytest.raises(ConfigError, match="tolerated loss"):
            non_inferiority(interval(0, 1), -0.1)

    def test_holm(self) -> None:
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert holm([0.5, 0.9, 0.6]) == [1, 1, 1]
        assert holm([]) == []
        with pytest.raises(ConfigError):
            holm([1.2])

    def test_detectable_effect(self) -> None:
        assert minimal_detectable_effect(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-6)
        n = pairs_needed(0.1, 1.0)
        assert n == 785  # (2.8016 / 0.1)^2 = 784.9
        assert minimal_detectable_effect(1.0 / math.sqrt(n)) <= 0.1
        with pytest.raises(ConfigError):
            pairs_needed(0, 1)
        with pytest.raises(ConfigError):
            minimal_detectable_effect(1, power=80)
