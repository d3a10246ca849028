"""Who wins at equal time: by paired intervals, and by metrics that may decide; "held" never hides a better control."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from hasten.eval.compare.analysis import Settings
from hasten.eval.compare.contest import contests, deciding_metrics
from hasten.eval.compare.engine import Arm
from hasten.eval.compare.gates import parse_gates
from hasten.eval.compare.scores import SampleScores, SetScores
from hasten.eval.compare.wording import contest_text, headline, verdict_text
from hasten.eval.metrics.fidelity import Psnr
from hasten.eval.metrics.miniature import Parser
from hasten.eval.metrics.sets import Fid
from hasten.eval.networks.features import FeatureNetwork
from hasten.extend import ConfigError

from .test_analysis import Error

ARMS = [
    Arm("baseline", "baseline", 8),
    Arm("fast", "candidate", 8),
    Arm("other", "candidate", 8),
    Arm("fewer steps", "control", 5, time_of=("fast",)),
]
PROMPTS = [f"prompt {i}" for i in range(40)]


class Score(Error):
    """Higher is better."""

    name = "score"
    higher_is_better = True


class Second(Score):
    name: ClassVar = "second"


def sample(metric: Any, gain: float, noise: float = 0.02, count: int = 40) -> SampleScores:
    """``fast`` is better than its control by ``gain`` on average."""
    rng = np.random.default_rng(0)
    control = rng.normal(1.0, 0.5, count)
    spread = rng.normal(0, noise, count)
    fast = control + gain + spread - spread.mean()
    return SampleScores(
        metric, {"baseline": control + 5, "fast": fast, "other": fast, "fewer steps": control}
    )


def outcome(*scores: SampleScores, margins: Any = None, count: int = 40) -> str:
    found = contests(ARMS, PROMPTS[:count], scores, [], Settings(margins=margins))
    assert list(found) == ["fast"]
    return found["fast"].outcome


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.1,), "won"),
        ((-0.1,), "lost"),
        ((0.001,), "undecided"),
        ((0.1, 0.001), "won"),
        ((-0.1, 0.001), "lost"),
        ((0.1, -0.1), "undecided"),
        ((0.001, -0.001), "undecided"),
    ],
)
def test_the_winner_is_better_by_one_metric_and_worse_by_none(
    gains: tuple[float, ...], expected: str
) -> None:
    assert (
        outcome(*(sample(kind(), gain) for kind, gain in zip((Score, Second), gains, strict=False)))
        == expected
    )


def test_where_less_is_better_less_wins() -> None:
    assert outcome(sample(Error(), -0.1)) == "won"
    assert outcome(sample(Error(), 0.1)) == "lost"


def test_metrics_with_a_margin_decide_and_closeness_to_the_baseline_never_does() -> None:
    good, bad = sample(Score(), 0.1), sample(Second(), -0.1)
    assert outcome(good, bad, margins={"score": 0.5}) == "won"
    assert outcome(good, bad, margins={"second": 0.5}) == "lost"
    assert deciding_metrics([Psnr()], ()) == frozenset()
    assert deciding_metrics([Psnr(), Score(), Second()], ()) == {"score", "second"}
    closer = sample(Psnr(), -3.0)
    assert outcome(closer) == "undecided"
    found = contests(ARMS, PROMPTS, [closer, good], [], Settings())["fast"]
    assert found.outcome == "won"
    assert (found.differences["psnr"].better, found.differences["psnr"].decides) == ("control", False)


def test_intervals_are_of_candidate_minus_control_and_hold_together() -> None:
    score = sample(Score(), 0.1)
    alone = contests(ARMS, PROMPTS, [score], [], Settings())["fast"].differences["score"].change
    both = contests(ARMS, PROMPTS, [score, sample(Second(), 0.0)], [], Settings())["fast"]
    change = both.differences["score"].change
    assert (alone.level, change.level) == pytest.approx((0.95, 0.975))
    assert change.value == pytest.approx(0.1)
    assert change.high - change.low > alone.high - alone.low


def test_a_handful_of_prompts_decides_nothing() -> None:
    assert outcome(sample(Score(), 0.1, 1e-4, 3), count=3) == "undecided"  # p of the exact test: 1/4
    assert outcome(sample(Score(), 0.1, 1e-4, 8), count=8) == "won"


def test_ratios_are_resampled_by_prompt() -> None:
    asked = np.array([6.0, 11.0] * 20)
    right = {"baseline": asked, "fast": asked - 1, "other": asked, "fewer steps": asked - 2}
    right["fewer steps"][:3] += 2
    values = {arm: counts / asked for arm, counts in right.items()}
    scores = SampleScores(Parser(), values, {arm: (counts, asked) for arm, counts in right.items()})
    found = contests(ARMS, PROMPTS, [scores], [], Settings())["fast"]
    assert found.differences["mini_parser"].change.value == pytest.approx((37 - 3) / 340)
    assert found.outcome == "won"


def test_sets_are_compared_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 3, generator=generator)
    features = {
        name: {"features": base + shift}
        for name, shift in (("baseline", 0.0), ("fast", 0.5), ("other", 0.0), ("fewer steps", 2.0))
    }
    network = FeatureNetwork(torch.nn.Identity(), lambda x: x, name="identity", preprocessing="none")
    metric = Fid(network)
    reference = {"features": torch.randn(200, 3, generator=generator)}
    found = contests(ARMS, PROMPTS, [], [SetScores(metric, features, reference)], Settings())["fast"]
    assert found.outcome == "won"
    assert found.differences[metric.name].change.high < 0


def test_a_gate_asks_for_the_win() -> None:
    gates = parse_gates(["beats_fewer_steps", " fast : beats_fewer_steps "], ["psnr"], ["fast"])
    assert [(gate.arm, gate.timed) for gate in gates] == [(None, False), ("fast", False)]
    for result, held in (("won", True), ("undecided", False), ("lost", False), (None, False)):
        checked = gates[1].check("fast", {"beats_fewer_steps": result})
        assert (checked["held"], checked["measured"]) == (held, result)
    with pytest.raises(ConfigError, match="no configuration is called 'slow'"):
        parse_gates(["slow:beats_fewer_steps"], ["psnr"], ["fast"])


def test_held_never_stands_beside_a_better_control_without_naming_it() -> None:
    interval = {"value": -0.01, "low": -0.02, "high": -0.005, "method": ""}
    verdict = {"outcome": "held", "margin": 0.05, "worst": -0.02}
    speed = {"value": 1.5, "low": 1.4, "high": 1.6}
    difference = {"change": interval, "better": "control", "decides": True}
    document: dict[str, Any] = {
        "figures": {"fast": {"score": {"change": interval, "verdict": verdict}}},
        "contests": {
            "fast": {"steps": 5, "outcome": "lost", "against": "x", "differences": {"score": difference}}
        },
        "times": {
            "arms": {"fast": {"speedup": {"value": speed}}},
            "contests": {"fast": {"value": 0.97}},
            "gates": [],
        },
        "gates": [{"gate": "beats_fewer_steps", "arm": "fast", "measured": "lost", "held": False}],
    }
    control = "plain sampling in the same time (5 steps"
    text = verdict_text(document, "fast", "score")
    assert text == f"within the margin of 0.05, but {control}) is better"
    said = f"lost against {control} in 0.97 of its time): score -0.01 [-0.02, -0.005]"
    assert contest_text(document, "fast") == said
    sentence = headline(document, "fast")
    assert said in sentence
    assert text in sentence
    assert "gate beats_fewer_steps missed at lost" in sentence
    difference["better"] = None
    assert verdict_text(document, "fast", "score") == "within the margin of 0.05"
    document["contests"] = {}
    assert contest_text(document, "fast") == ""
