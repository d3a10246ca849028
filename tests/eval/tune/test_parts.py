"""The parts of a tuning that need no pipeline: division of time and prompts, prices, finalists, the answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hasten.commands import Config, host
from hasten.eval.efficiency.timing import Timings
from hasten.eval.statistics import Estimate
from hasten.eval.tune.answer import answer_of, reasons, unconfirmed
from hasten.eval.tune.budget import Budget, Noise, check_prompts, check_spread, divide, looks
from hasten.eval.tune.confirm import Finalist, Standing, finalists_of, joint_level
from hasten.eval.tune.output import curves_of
from hasten.eval.tune.pace import Pace
from hasten.eval.tune.search import Result, losses, open_study, results_of
from hasten.eval.tune.setting import Setting
from hasten.eval.tune.space import Space, Technique
from hasten.extend import Between, Choices, ConfigError

REFERENCE = 14


def result(setting: Setting, cost: float, outcome: str = "held", worst: float = 0.2) -> Result:
    change = {"value": -0.05 * worst, "low": -0.05, "high": 0.05}
    figures = {"parser": {"change": change, "outcome": outcome}}
    return Result(setting.to_dict(), outcome, 20, cost, 0.5, cost, {"parser": worst}, figures)  # type: ignore[arg-type]


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 20, 20, 0.01, 0.95, "made up")


# Prompts and minutes.


def test_too_few_prompts_say_how_many_are_needed() -> None:
    check_prompts(12)
    with pytest.raises(ConfigError, match=r"11 prompts are too few .* at least 12"):
        check_prompts(11)


def test_time_is_divided_so_that_the_confirmation_has_its_share() -> None:
    assert divide(20, 2.0, 40) == Budget(20, 20, 1200 - 20 * 2.0 * 3)
    rich = divide(60, 2.0, 1000)
    assert (rich.search, rich.confirm) == (360, 240)
    assert rich.search * 2.0 <= 0.2 * 3600
    odd = divide(60, 0.1, 13)
    assert (odd.search, odd.confirm) == (7, 6)


def test_a_budget_below_one_round_says_how_long_one_takes() -> None:
    with pytest.raises(
        ConfigError, match=r"0.5 minutes are too short .* takes 2 s here, so give --minutes 1.7"
    ):
        divide(0.5, 2.0, 40)
    divide(1.7, 2.0, 40)


def test_looks_grow_from_few_prompts_to_all_in_whole_batches() -> None:
    assert looks(50, 1) == (6, 12, 24, 48, 50)
    assert looks(6, 1) == (6,)
    assert looks(40, 4) == (8, 16, 32, 40)
    assert looks(10, 8) == (8, 10)


def test_prompts_too_few_for_the_margin_are_refused_or_warned_of() -> None:
    budget = Budget(20, 20, 100.0)
    assert check_spread({"parser": 0.05}, {"parser": 0.05}, budget, 40, 0.95) == []
    (warning,) = check_spread({"parser": 0.1}, {"parser": 0.05}, budget, 40, 0.95)
    assert "needs about 32 prompts" in warning
    assert "give 64 prompts in all" in warning
    with pytest.raises(
        ConfigError, match=r"margin of 0.02 of parser needs about 197 .* give 394 prompts in all"
    ):
        check_spread({"parser": 0.1}, {"parser": 0.02}, budget, 40, 0.95)
    with pytest.raises(ConfigError, match="give more --minutes"):
        check_spread({"parser": 0.1}, {"parser": 0.02}, budget, 1000, 0.95)
    assert check_spread({"parser": 0.0}, {"parser": 0.02}, budget, 40, 0.95) == []


def test_a_machine_is_noisy_by_the_spread_of_equal_batches_not_by_one_outlier() -> None:
    assert not Noise.of((1.0, 1.01, 0.99, 1.0, 5.0)).too_much
    assert Noise.of((1.0, 2.0, 0.7, 1.5, 3.0)).too_much
    assert not Noise.of((1.0,)).too_much


# Prices.


def test_costs_are_predicted_from_a_step_and_corrected_by_what_was_measured() -> None:
    pace = Pace.of((14, 1.5), (4, 0.5))
    assert (pace.step, pace.fixed) == pytest.approx((0.1, 0.1))
    fast = Setting(10, None, {"bottleneck": {"delta": 0.2}})
    assert pace.seconds(fast, 0.5) == pytest.approx(0.6)
    learned = pace.learned(fast, 0.5, 0.9)
    assert learned.seconds(fast, 0.5) == pytest.approx(0.9)
    assert learned.seconds(Setting(5), 1.0) == pytest.approx(0.6)  # plain sampling is as it was
    noisy = Pace.of((14, 1.4), (4, 1.6))  # fewer steps can't take longer
    assert noisy.step == 0


def test_losses_are_shares_of_the_margins_in_the_metrics_own_direction() -> None:
    figures = {"parser": {"change": {"value": -0.02}}, "lpips": {"change": {"value": 0.03}}}
    found = losses(figures, {"parser": 0.04, "lpips": 0.1}, {"parser": True, "lpips": False})
    assert found == pytest.approx({"parser": 0.5, "lpips": 0.3})


# Settings and the space.


SPACE = Space(
    REFERENCE,
    (None, "UniPC"),
    (
        Technique("bottleneck", {"min_pixels": 16}, {"delta": Between(0.02, 0.4, log=True, dial=True)}),
        Technique("hack", {}, {"ratio": Choices(0.3, 0.9)}),
        Technique("every_other"),
    ),
    conflicts={frozenset({"bottleneck", "every_other"}): "they collide"},
)


class Scripted:
    """A trial that answers what it is told, and remembers what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, list[str]()

    def _answer(self, name: str) -> Any:
        self.asked.append(name)
        return self.answers[name]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        assert low <= self.answers[name] <= high
        return int(self._answer(name))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        assert low <= self.answers[name] <= high
        return float(self._answer(name))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        assert self.answers[name] in choices
        return self._answer(name)


@pytest.fixture
def every_other() -> Iterator[None]:
    """The example plugin, as if it were installed."""
    import hasten_every_other

    unregister = host().register(hasten_every_other, "every_other")
    yield
    unregister()


@pytest.mark.usefixtures("every_other")
def test_a_setting_and_its_parameters_are_two_forms_of_the_same() -> None:
    setting = Setting(10, "UniPC", {"bottleneck": {"min_pixels": 16, "delta": 0.2}, "hack": {"ratio": 0.9}})
    trial = Scripted(SPACE.parameters(setting))
    assert SPACE.suggest(trial) == setting
    assert "every_other" not in trial.asked  # claims forbid it beside bottleneck
    alone = Setting(7, None, {"every_other": {}})
    assert SPACE.suggest(Scripted(SPACE.parameters(alone))) == alone
    assert Setting.of(setting.to_dict()) == setting
    assert setting.arm.name != alone.arm.name
    assert setting.describe() == "10 steps, UniPC, bottleneck (min_pixels 16, delta 0.2), hack (ratio 0.9)"


def test_the_search_begins_with_the_plain_ladder_and_every_technique_over_its_dial() -> None:
    space = Space(REFERENCE, (None,), SPACE.techniques[:1])
    first = list(space.first_settings((10, 7, 5)))
    assert first[:3] == [Setting(10), Setting(7), Setting(5)]
    dials = [s.techniques["bottleneck"]["delta"] for s in first[3:] if s.steps == REFERENCE]
    assert dials == [0.2, 0.02, 0.0543, 0.147, 0.4]  # its default, then from careful to bold
    assert Setting(10, None, {"bottleneck": {"min_pixels": 16, "delta": 0.4}}) in first


def test_a_preset_is_tried_with_the_options_that_may_be_searched() -> None:
    bottleneck = SPACE.techniques[0]
    space = Space(REFERENCE, (None,), (bottleneck,))
    found = space.nearest(Config.of({"bottleneck": {"delta": 0.3}}))
    assert found == Setting(REFERENCE, None, {"bottleneck": {"min_pixels": 16, "delta": 0.3}})
    assert SPACE.suggest(Scripted(SPACE.parameters(found))) == found
    outside = space.nearest(Config.of({"bottleneck": {"delta": 0.9}}))
    assert outside is not None
    assert outside.techniques["bottleneck"]["delta"] == 0.02  # the most careful that is searched
    assert space.nearest(Config.of(["guidance_interval"])) is None
    assert space.nearest(Config()) is None


def test_a_study_on_disk_is_gone_on_with(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.log", 0)
    study.enqueue_trial(SPACE.parameters(Setting(10)))
    trial = study.ask()
    assert SPACE.suggest(trial) == Setting(10)
    trial.set_user_attr("result", asdict(result(Setting(10), 1.0)))
    study.tell(trial, [1.0, 0.2])
    assert results_of(open_study(tmp_path / "study.log", 0)) == [result(Setting(10), 1.0)]


# Finalists and the answer.


def test_finalists_are_the_fastest_of_either_kind_and_the_runner_up_of_the_faster() -> None:
    tuned = [Setting(14, None, {"bottleneck": {"delta": d}}) for d in (0.4, 0.39, 0.1)]
    results = [
        result(tuned[0], 0.6),
        result(tuned[1], 0.61),  # too close to say anything new
        result(tuned[2], 0.8),
        result(Setting(10), 1.0),
        result(Setting(12), 1.2),
        result(Setting(7), 0.7, "missed", 2.0),
    ]
    assert [f.setting for f in finalists_of(results)] == [tuned[0], tuned[2], Setting(10)]
    assert finalists_of([result(Setting(7), 0.7, "missed", 2.0)]) == []
    open_ones = [result(Setting(10), 1.0, "undecided", 0.4), result(Setting(8), 0.8, "undecided", 0.9)]
    assert [f.setting for f in finalists_of(open_ones)] == [Setting(10)]
    assert joint_level(0.95, 2) == pytest.approx(0.975)


def standing(setting: Setting, speed: float, held: bool = True) -> Standing:
    outcome = "held" if held else "missed"
    return Standing(
        Finalist(setting.describe(), setting),
        held,
        {"parser": outcome},
        {"parser": estimate(-0.01, -0.03, 0.01)},
        estimate(speed, 0.95 * speed, 1.05 * speed),
        1.4 / speed,
        speed,
    )


FAST = Setting(14, None, {"bottleneck": {"delta": 0.2}})


def timings(fast: tuple[float, ...], plain: tuple[float, ...]) -> Timings:
    return Timings({FAST.describe(): fast, Setting(10).describe(): plain, "baseline": (1.4,) * len(fast)})


def test_the_fastest_that_was_confirmed_is_the_answer_beside_plain_sampling() -> None:
    clear = timings((0.7,) * 8, (1.0,) * 8)
    answer = answer_of([standing(FAST, 2.0), standing(Setting(10), 1.4)], clear, REFERENCE, {"parser": 0.05})
    assert (answer.kind, answer.setting, answer.confirmed) == ("techniques", FAST, True)
    assert "2.00x [1.9, 2.1] the reference's speed" in answer.sentence
    assert "1.43x [1.43, 1.43] the speed of 10 steps of plain sampling, which held too" in answer.sentence


def test_plain_sampling_is_the_answer_unless_techniques_are_faster_beyond_doubt() -> None:
    doubtful = timings((0.7, 1.2, 0.8, 1.1, 0.9, 1.3, 0.7, 1.2), (1.0,) * 8)
    both = [standing(FAST, 1.5), standing(Setting(10), 1.4)]
    answer = answer_of(both, doubtful, REFERENCE, {"parser": 0.05})
    assert (answer.kind, answer.setting) == ("plain", Setting(10))
    assert answer.sentence.startswith(
        "plain sampling is best here, nothing that was confirmed is faster beyond doubt"
    )
    lost = [standing(FAST, 2.0, held=False), standing(Setting(10), 1.4)]
    answer = answer_of(lost, timings((0.7,) * 8, (1.0,) * 8), REFERENCE, {"parser": 0.05})
    assert (answer.kind, answer.setting) == ("plain", Setting(10))


def test_the_reference_stays_where_nothing_is_confirmed() -> None:
    answer = answer_of([standing(FAST, 2.0, held=False)], None, REFERENCE, {"parser": 0.05})
    assert (answer.kind, answer.setting) == ("reference", Setting(REFERENCE))
    assert "none of 1 finalists was confirmed" in answer.sentence


def test_flops_decide_where_seconds_can_not() -> None:
    both = [standing(FAST, 2.0), standing(Setting(10), 1.4)]
    answer = answer_of(both, None, REFERENCE, {"parser": 0.05})
    assert answer.setting == FAST
    assert "by FLOPs 2.00 times the reference's speed" in answer.sentence


def test_an_interrupted_search_leaves_its_best_and_says_that_nothing_is_confirmed() -> None:
    answer = unconfirmed([result(FAST, 0.7), result(Setting(10), 1.0)], REFERENCE)
    assert (answer.setting, answer.confirmed) == (FAST, False)
    assert "not confirmed" in answer.sentence
    assert unconfirmed([], REFERENCE).setting == Setting(REFERENCE)


def test_every_technique_is_told_why_it_is_in_or_out() -> None:
    space = Space(
        REFERENCE,
        techniques=tuple(
            Technique(name) for name in ("bottleneck", "every_other", "slow", "bad", "dear", "late")
        ),
        excluded={"hack": "it needs a KV cache"},
        conflicts={frozenset({"bottleneck", "every_other"}): "they collide"},
    )
    results = [
        result(FAST, 0.7),
        result(Setting(14, None, {"every_other": {}}), 0.8),
        result(Setting(14, None, {"slow": {}}), 1.2),
        result(Setting(14, None, {"bad": {}}), 0.6, "missed", 3.0),
    ]
    skipped = [(Setting(14, None, {"dear": {}}), "expected at 2 s a picture")]
    answer = answer_of([standing(FAST, 2.0)], None, REFERENCE, {"parser": 0.05})
    told = reasons(space, results, skipped, answer, "s a picture")
    assert told["bottleneck"].startswith("in: settings looked at: 1")
    assert told["hack"] == "out: it needs a KV cache"
    assert "does not go with bottleneck, which is in (they collide)" in told["every_other"]
    assert "takes 1.2 s a picture" in told["slow"]
    assert "none of its settings held" in told["bad"]
    assert "3.00 of the margin of parser lost" in told["bad"]
    assert "no picture was spent on it: expected at 2 s" in told["dear"]
    assert "had its turn" in told["late"]


def test_the_curve_has_a_cloud_for_every_set_of_techniques_and_lines_for_plain_sampling() -> None:
    results = [result(FAST, 0.7), result(Setting(10), 1.0), result(Setting(10, "UniPC"), 1.1)]
    curves = curves_of(results, {"steps": REFERENCE, "cost": 1.4}, "Euler")
    assert [(c.name, len(c.points), c.plain, c.joined) for c in curves] == [
        ("plain, Euler", 2, True, True),
        ("bottleneck", 1, False, False),
        ("plain, UniPC", 1, True, True),
    ]
    assert math.isclose(curves[0].points[1].seconds["value"], 1.4)


def test_techniques_of_a_setting_are_a_configuration() -> None:
    config = FAST.config
    assert config == Config.of({"bottleneck": {"delta": 0.2}})
    assert Setting(10).config is None
