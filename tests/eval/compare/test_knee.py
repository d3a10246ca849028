"""The knee of the step curve: order of the tests, solvers, resuming, processes, and what is told of it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.commands import Processes, other_solvers, solving_with
from hasten.eval.compare import document as documents
from hasten.eval.compare.analysis import Settings
from hasten.eval.compare.document import Evaluation, Scored, rung_judge
from hasten.eval.compare.engine import Arm, control_arms
from hasten.eval.compare.knee import Knee, Ladder, Rung, default_steps, next_rung
from hasten.eval.compare.run import Request, run_comparison
from hasten.eval.compare.scores import SampleScores
from hasten.eval.compare.store import RunStore
from hasten.eval.scoring.reference import Embedded
from hasten.extend import ConfigError

from .test_analysis import Error

Requests = Callable[..., Request]


class Score(Error):
    name = "score"
    higher_is_better = True


def climbed(steps: tuple[int, ...], holds: Mapping[str | None, int]) -> list[tuple[int, str | None, bool]]:
    """What is tested, in order; with a solver, so many steps and more hold."""
    decided: list[Rung] = []
    while (following := next_rung(steps, list(holds), decided)) is not None:
        decided.append(Rung(*following, following[0] >= holds[following[1]], {}))
    return [(rung.steps, rung.solver, rung.held) for rung in decided]


def test_rungs_are_tested_from_above_up_to_the_first_miss_and_other_solvers_only_below() -> None:
    assert climbed((20, 14, 10, 7), {None: 14, "UniPC": 10, "DPM++ 2M": 9}) == [
        (20, None, True),
        (14, None, True),
        (10, None, False),
        (10, "UniPC", True),
        (7, "UniPC", False),
        (7, "DPM++ 2M", False),
    ]
    assert climbed((14, 10), {None: 1, "UniPC": 1}) == [(14, None, True), (10, None, True)]
    assert climbed((14, 10), {None: 20, "UniPC": 20}) == [(14, None, False), (14, "UniPC", False)]
    assert climbed((), {None: 1}) == []


def test_default_rungs_are_below_the_reference() -> None:
    assert default_steps(28) == (20, 14, 10, 7, 5, 4)
    assert default_steps(50) == (35, 25, 18, 12, 9, 6, 4)
    assert default_steps(4) == ()


def test_solvers_suit_the_prediction_and_the_pipeline_gets_its_own_back(pipe: Any) -> None:
    import families

    assert list(other_solvers(pipe)) == ["UniPC"]
    assert list(other_solvers(families.FAMILIES["sdxl"]())) == ["DPM++ 2M", "UniPC"]
    assert list(other_solvers(families.FAMILIES["wan"]())) == ["Euler"]
    own, config = pipe.scheduler, dict(pipe.config)
    with solving_with(pipe, "UniPC"):
        assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
        assert pipe.scheduler.config.prediction_type == "flow_prediction"
        assert pipe.scheduler.config.flow_shift == own.config.shift
    assert pipe.scheduler is own
    assert dict(pipe.config) == config


@pytest.mark.parametrize("family", ["flux", "sdxl", "wan"])
def test_other_solvers_run_and_give_another_result(family: str) -> None:
    import families
    import torch

    pipe = families.FAMILIES[family]()
    own = families.baseline(pipe, family)
    for name in other_solvers(pipe):
        with solving_with(pipe, name):
            other = families.baseline(pipe, family)
        assert torch.isfinite(other).all()
        assert not torch.equal(other, own)
    assert torch.equal(families.baseline(pipe, family), own)


def laddered(request: Request, *steps: int) -> Request:
    """``request`` with a ladder, and steps of equal time that are not left to a measurement."""
    ladder = Ladder(steps, {"score": 0.1}, len(request.job.prompts))
    fewer = {"low resolution": 2, "low resolution at the knee": 1}
    return replace(request, ladder=ladder, fewer_steps=fewer)


def judging(holds: Mapping[str | None, int], seen: list[str] | None = None) -> Any:
    """A judge to whom so many steps of a solver are enough."""

    def judge(store: RunStore, name: str, prompts: Any) -> dict[str, Any]:
        if seen is not None:
            seen.append(name)
        count, _, solver = name.partition(" steps")
        held = int(count) >= holds[solver.removeprefix(", ") or None]
        return {"score": {"held": held, "outcome": "held" if held else "missed", "needed": None}}

    return judge


@pytest.fixture(scope="module")
def finished(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    from .conftest import make_request

    request = laddered(make_request(), 3, 2)
    folder = tmp_path_factory.mktemp("run")
    return run_comparison(pipe, request, folder, judge=judging({None: 3, "UniPC": 2}))


def digests(store: RunStore) -> dict[tuple[str, int], str]:
    return {key: record.sha256 for key, record in store.records().items()}


def test_candidates_run_from_the_reference_and_from_the_knee(finished: RunStore) -> None:
    run = finished.read_run()
    assert run is not None
    knee = Knee.of(run["knee"])
    assert (knee.steps, knee.solver, knee.reference, knee.below) == (2, "UniPC", 4, True)
    assert [(rung.steps, rung.solver, rung.held) for rung in knee.rungs] == [
        (3, None, True),
        (2, None, False),
        (2, "UniPC", True),
    ]
    rows = {arm["name"]: (arm["role"], arm["steps"], arm["solver"]) for arm in run["arms"]}
    assert rows["knee"] == ("control", 2, "UniPC")
    assert rows["low resolution at the knee"] == ("candidate", 2, "UniPC")
    assert rows["fewer steps (low resolution)"] == ("control", 2, None)
    assert rows["fewer steps (low resolution at the knee)"] == ("control", 1, "UniPC")
    assert run["flops"]["knee"] < run["flops"]["baseline"]


def test_the_pictures_of_the_ladder_are_kept_and_those_of_the_knee_are_the_same(finished: RunStore) -> None:
    ladder = RunStore(finished.folder / "ladder")
    tested, made = digests(ladder), digests(finished)
    assert {arm for arm, _ in tested} == {"baseline", "3 steps", "2 steps", "2 steps, UniPC"}
    for i in range(4):
        assert tested["2 steps, UniPC", i] == made["knee", i]
        assert tested["baseline", i] == made["baseline", i]
        assert tested["2 steps", i] != made["knee", i]


def test_a_finished_search_is_not_made_again(finished: RunStore, request_of: Requests) -> None:
    again = run_comparison(None, laddered(request_of(), 3, 2), finished.folder)
    assert digests(again) == digests(finished)
    with pytest.raises(ConfigError, match="another fewer_steps, ladder"):
        run_comparison(None, request_of(), finished.folder)


def test_a_killed_search_goes_on_where_it_was(
    pipe: Any,
    finished: RunStore,
    request_of: Requests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request, holds = laddered(request_of(), 3, 2), {None: 3, "UniPC": 2}
    made: list[tuple[str, int]] = []
    save = RunStore.save_frames

    def killed(self: RunStore, arm: str, index: int, frames: Any) -> tuple[str, str]:
        made.append((arm, index))
        if len(made) == 10:  # in the second rung
            raise KeyboardInterrupt
        return save(self, arm, index, frames)

    judged: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "save_frames", killed)
        with pytest.raises(KeyboardInterrupt):
            run_comparison(pipe, request, tmp_path, judge=judging(holds, judged))
    resumed = run_comparison(pipe, request, tmp_path, judge=judging(holds, judged))
    assert digests(resumed) == digests(finished)
    assert judged == ["3 steps", "2 steps", "2 steps, UniPC"]  # none twice


def test_where_no_rung_holds_the_reference_is_the_knee(
    pipe: Any, request_of: Requests, tmp_path: Path
) -> None:
    request = laddered(replace(request_of(2), controls=()), 3)
    run = run_comparison(pipe, request, tmp_path, judge=judging({None: 9, "UniPC": 9})).read_run()
    assert run is not None
    assert [arm["name"] for arm in run["arms"]] == ["baseline", "low resolution"]
    assert (run["knee"]["steps"], len(run["knee"]["rungs"])) == (4, 2)


def test_processes_share_the_ladder_and_one_of_them_judges(
    pipe: Any, finished: RunStore, request_of: Requests, tmp_path: Path
) -> None:
    request, judged = laddered(request_of(), 3, 2), []
    other = copy.deepcopy(pipe)
    options: dict[str, Any] = {"judge": judging({None: 3, "UniPC": 2}, judged), "patience": 60}
    second = threading.Thread(
        target=run_comparison,
        args=(other, request, tmp_path),
        kwargs={"processes": Processes(1, 2), **options},
    )
    second.start()
    store = run_comparison(pipe, request, tmp_path, processes=Processes(0, 2), **options)
    second.join()
    assert judged == ["3 steps", "2 steps", "2 steps, UniPC"]
    ladder = RunStore(tmp_path / "ladder")
    assert {record.rank for record in ladder.records().values()} == {0, 1}
    assert digests(ladder) == digests(RunStore(finished.folder / "ladder"))
    assert digests(store) == digests(finished)


@pytest.mark.parametrize(
    ("steps", "message"), [((3, 4), "4 steps are not between 1 and the 4"), ((), "give --ladder")]
)
def test_a_ladder_is_below_the_reference(request_of: Requests, steps: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        laddered(request_of(), *steps)


def test_equal_time_controls_have_the_solver_of_their_candidate() -> None:
    fewer = {"a": 5, "a at the knee": 5, "b": 5}
    arms = control_arms(20, fewer, ("fewer steps",), {"a at the knee": "UniPC"})
    assert [(arm.name, arm.solver, arm.time_of) for arm in arms] == [
        ("fewer steps (a, b)", None, ("a", "b")),
        ("fewer steps (a at the knee)", "UniPC", ("a at the knee",)),
    ]


def judged_rung(monkeypatch: pytest.MonkeyPatch, change: np.ndarray, margin: float) -> dict[str, Any]:
    base = np.random.default_rng(1).normal(1.0, 0.5, len(change))
    scores = SampleScores(Score(), {"baseline": base, "7 steps": base + change})
    asked: list[Any] = []

    def scored(store: Any, arms: Any, prompts: Any, evaluation: Evaluation) -> Scored:
        asked.extend([list(arms), [metric.name for metric in evaluation.metrics]])
        return Scored([scores], [], Embedded({}))

    monkeypatch.setattr(documents, "score_arms", scored)
    evaluation = Evaluation([Score(), Error()], None, Settings(margins={"score": margin}))
    judge = rung_judge(evaluation, Ladder((7,), {"score": margin}, len(change)))
    figures = judge(RunStore.__new__(RunStore), "7 steps", [f"prompt {i}" for i in range(len(change))])
    assert asked == [["baseline", "7 steps"], ["score"]]
    return dict(figures["score"])


def test_a_rung_holds_if_its_whole_interval_is_within_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    assert judged_rung(monkeypatch, noise - noise.mean(), 0.1)["held"]
    missed = judged_rung(monkeypatch, noise - noise.mean() - 0.5, 0.1)
    assert (missed["held"], missed["outcome"], missed["needed"]) == (False, "missed", None)
    open_yet = judged_rung(monkeypatch, noise - noise.mean(), 0.01)
    assert (open_yet["held"], open_yet["outcome"]) == (False, "undecided")
    # (1.96 + 0.84)^2 times (spread / margin)^2
    assert open_yet["needed"] == pytest.approx(7.85 * (noise.std() / 0.01) ** 2, rel=0.1)


def test_a_rung_in_which_no_prompt_differs_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.eval.compare.analysis import Figure
    from hasten.eval.compare.document import _rung_figure
    from hasten.eval.statistics import non_inferiority, paired_ratio_difference

    change = paired_ratio_difference([5] * 10, [5] * 10, [6] * 10)
    verdict = non_inferiority(change, 0.05)
    assert verdict.outcome == "undecided"
    assert _rung_figure(Figure(change, change, verdict=verdict))["held"]


def test_arms_with_a_solver_come_back_from_the_run_file(finished: RunStore) -> None:
    from hasten.eval.compare.run import arms_of_run

    run = finished.read_run()
    assert run is not None
    arms = {arm.name: arm for arm in arms_of_run(run)}
    assert arms["knee"] == Arm("knee", "control", 2, solver="UniPC")
