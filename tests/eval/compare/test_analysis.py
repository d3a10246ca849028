"""Figures and conclusions against values computed here by other means."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.compare.analysis import Settings, analyse, batch_timings, check_margins, sanity
from hasten.eval.compare.engine import Arm
from hasten.eval.compare.scores import SampleScores, SetScores
from hasten.eval.compare.store import Record
from hasten.eval.fingerprint import Fingerprint
from hasten.eval.metric import Batch, Features, SampleMetric
from hasten.eval.metrics.fidelity import Psnr
from hasten.eval.metrics.miniature import Parser
from hasten.eval.metrics.sets import Fid
from hasten.eval.networks.features import FeatureNetwork

ARMS = [
    Arm("baseline", "baseline", 8),
    Arm("fast", "candidate", 8),
    Arm("faster", "candidate", 8),
    Arm("repeat", "control", 8),
]
PROMPTS = [f"prompt {i}" for i in range(40)]


class Error(SampleMetric):
    """Lower is better, one number per picture."""

    name = "error"
    needs: ClassVar = frozenset({"image"})
    higher_is_better = False

    def embed(self, batch: Batch) -> Features:
        raise NotImplementedError

    def score(self, features: Features) -> Tensor:
        raise NotImplementedError

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.name)


def scores() -> SampleScores:
    rng = np.random.default_rng(0)
    base = rng.normal(1.0, 0.5, len(PROMPTS))
    values = {
        "baseline": base,
        "fast": base + rng.normal(0.01, 0.02, len(base)),
        "faster": base + rng.normal(0.30, 0.10, len(base)),
        "repeat": base,
    }
    return SampleScores(Error(), values)


def test_differences_are_paired_and_their_intervals_agree_with_students_t() -> None:
    sample = scores()
    figure = analyse(ARMS, PROMPTS, [sample], [], Settings())["faster"]["error"]
    change = sample.values["faster"] - sample.values["baseline"]
    low, high = stats.t.interval(0.95, len(change) - 1, change.mean(), stats.sem(change))
    assert figure.change is not None
    assert figure.change.value == pytest.approx(change.mean(), rel=1e-12)
    assert (figure.change.low, figure.change.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert figure.smallest_detectable == pytest.approx(2.8 * stats.sem(change), rel=0.05)


def test_verdicts_hold_miss_or_stay_open_by_the_margin() -> None:
    def outcome(arm: str, margin: float) -> str:
        rows = analyse(ARMS, PROMPTS, [scores()], [], Settings(margins={"error": margin}))
        verdict = rows[arm]["error"].verdict
        assert verdict is not None
        return verdict.outcome

    assert outcome("fast", 0.1) == "held"
    assert outcome("faster", 0.1) == "missed"
    assert outcome("fast", 0.01) == "undecided"


def test_only_candidates_are_judged_and_holm_counts_only_them() -> None:
    rows = analyse(ARMS, PROMPTS, [scores()], [], Settings(margins={"error": 0.1}))
    fast, faster, repeat = (rows[name]["error"] for name in ("fast", "faster", "repeat"))
    assert rows["baseline"]["error"].change is None
    assert repeat.verdict is None
    assert repeat.p_holm is None
    assert fast.tests is not None
    assert faster.tests is not None
    p = sorted([fast.tests.p_sign_flip, faster.tests.p_sign_flip])
    assert sorted([fast.p_holm or 0, faster.p_holm or 0]) == pytest.approx([2 * p[0], max(2 * p[0], p[1])])


def test_accuracies_are_ratios_of_sums() -> None:
    asked = np.array([6.0, 11.0] * 20)
    right = {"baseline": asked - 1, "fast": asked - 2, "faster": asked * 0, "repeat": asked - 1}
    sample = SampleScores(
        Parser(),
        {arm: counts / asked for arm, counts in right.items()},
        {arm: (counts, asked) for arm, counts in right.items()},
    )
    rows = analyse(ARMS, PROMPTS, [sample], [], Settings())
    assert rows["baseline"]["mini_parser"].value.value == pytest.approx(300 / 340)
    change = rows["fast"]["mini_parser"].change
    assert change is not None
    assert change.value == pytest.approx(-40 / 340)


def test_sets_are_compared_with_their_reference_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 3, generator=generator)
    features = {
        "baseline": {"features": base},
        "fast": {"features": base + 0.01},
        "faster": {"features": base + 1.0},
        "repeat": {"features": base},
    }
    network = FeatureNetwork(torch.nn.Identity(), lambda x: x, name="identity", preprocessing="none")
    reference = {"features": torch.randn(200, 3, generator=generator)}
    metric = Fid(network)
    rows = analyse(ARMS, PROMPTS, [], [SetScores(metric, features, reference)], Settings())
    name = metric.name
    faster, repeat = rows["faster"][name].change, rows["repeat"][name].change
    assert faster is not None
    assert repeat is not None
    # Shifting every vector by 1 changes only the squared distance of the means.
    before = (base.double().mean(0) - reference["features"].double().mean(0)).square().sum()
    after = (base.double().mean(0) + 1 - reference["features"].double().mean(0)).square().sum()
    assert faster.value == pytest.approx(float(after - before), rel=1e-5)
    assert faster.low > 0
    assert repeat.value == repeat.low == repeat.high == 0


def test_a_margin_needs_a_metric_that_was_measured_and_can_have_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'error'"):
        check_margins({"eror": 1}, [Error()])
    with pytest.raises(ConfigError, match="--gate"):
        check_margins({"psnr": 1}, [Error(), Psnr()])
    check_margins({"error": 1}, [Error(), Psnr()])


def record(arm: str, index: int, seconds: float) -> Record:
    return Record(arm, index, index, "", "", index // 2, seconds)


def test_speed_is_the_median_of_ratios_of_neighbouring_batches() -> None:
    times = {"baseline": [2.0, 4.0, 8.0], "fast": [1.0, 2.0, 5.0]}
    records = {(arm, i): record(arm, i, seconds[i // 2]) for arm, seconds in times.items() for i in range(6)}
    timings = batch_timings(ARMS[:2], records)
    assert timings.ratio("baseline", "fast").value == 2.0
    assert timings.seconds["fast"] == (1.0, 2.0, 5.0)


def test_what_looks_like_a_mistake_is_said() -> None:
    arms = [*ARMS[:2], dataclasses.replace(ARMS[3])]
    same = {(arm.name, i): f"hash {i}" for arm in arms for i in range(3)}
    text = " ".join(sanity(arms, PROMPTS[:3], {**same, ("repeat", 0): "other"}))
    assert "3 prompts" in text
    assert "techniques had no effect" in text
    assert "2 of 3 pictures" in text
    constant = {(arm.name, i): "one" for arm in arms for i in range(3)}
    assert "same picture" in " ".join(sanity(arms, PROMPTS[:3], constant))
