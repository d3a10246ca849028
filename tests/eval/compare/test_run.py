"""Arms, seeds and order; and that a run can be killed, spread over processes and continued without a
difference.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hasten._errors import ConfigError, HastenError
from hasten._processes import Processes, wait_for
from hasten.eval.compare import engine
from hasten.eval.compare.engine import Arm, Turn, control_arms, equal_time_steps, flops_of, turns, warm_up
from hasten.eval.compare.run import Request, run_comparison
from hasten.eval.compare.store import RunStore
from hasten.eval.efficiency import Timings

Requests = Callable[..., Request]


def digests(store: RunStore) -> dict[tuple[str, int], str]:
    return {key: record.sha256 for key, record in store.records().items()}


@pytest.fixture(scope="module")
def finished(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    from .conftest import make_request

    return run_comparison(pipe, make_request(), tmp_path_factory.mktemp("run"))


def test_every_arm_has_every_prompt_with_its_own_seed(finished: RunStore) -> None:
    records = finished.records()
    names = {"baseline", "low resolution", "repeat", "other seed", "fewer steps"}
    assert set(records) == {(name, i) for name in names for i in range(4)}
    assert [records["low resolution", i].seed for i in range(4)] == [0, 1, 2, 3]
    assert len({records["other seed", i].seed for i in range(4)} - {0, 1, 2, 3}) == 4


def test_controls_are_what_they_are_called(finished: RunStore) -> None:
    hashes = digests(finished)
    for i in range(4):
        assert hashes["repeat", i] == hashes["baseline", i]
        assert (
            len({hashes[name, i] for name in ("baseline", "low resolution", "other seed", "fewer steps")})
            == 4
        )


def test_the_run_file_says_what_ran_and_what_it_cost(finished: RunStore) -> None:
    run = finished.read_run()
    assert run is not None
    steps = {arm["name"]: arm["steps"] for arm in run["arms"]}
    assert steps["fewer steps"] == 2
    assert run["flops"]["low resolution"] < run["flops"]["baseline"] == run["flops"]["repeat"]
    report = finished.read_steps("low resolution")
    assert report is not None
    assert {tuple(step["resolution"]) for step in report["steps"]} == {(8, 8), (4, 4)}


def test_what_is_being_done_is_told_from_the_first_call_on(
    pipe: Any, request_of: Requests, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    run_comparison(pipe, request_of(2), tmp_path, progress=lambda *now: told.append(now))
    warming, measuring, generating = (
        [(done, total) for stage, done, total in told if stage == name]
        for name in ("warming up", "measuring", "generating")
    )
    assert warming == [(i, 4) for i in range(1, 5)]
    assert measuring == [(i, 8) for i in range(8)]
    assert (generating[0], generating[-1]) == ((0, 10), (10, 10))
    order = [stage for stage, *_ in told]
    assert list(dict.fromkeys(order)) == ["warming up", "measuring", "generating"]


@pytest.mark.parametrize(("given", "rounds"), [({"low resolution": 2}, 1), ({}, engine.ROUNDS)])
def test_the_warm_up_is_short_where_the_steps_of_equal_time_are_given(
    pipe: Any, request_of: Requests, tmp_path: Path, given: dict[str, int], rounds: int
) -> None:
    run = run_comparison(pipe, replace(request_of(2), fewer_steps=given), tmp_path).read_run()
    assert run is not None
    assert {len(pace["rounds_s"]) for pace in run["warm_up"].values()} == {rounds}


def test_records_are_merged_in_one_order(finished: RunStore) -> None:
    lines = [json.loads(line) for line in (finished.folder / "records.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)
    assert [line["arm"] for line in lines[:2]] == ["baseline", "low resolution"]


def test_a_finished_run_is_not_made_again(finished: RunStore, request_of: Requests) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.png")}
    again = run_comparison(None, request_of(), finished.folder)
    assert before == {path: path.stat().st_mtime_ns for path in again.folder.rglob("*.png")}


@pytest.mark.parametrize("turn", [0, 1, 4, 7])
def test_a_killed_run_goes_on_without_repeating_or_losing_anything(
    pipe: Any,
    finished: RunStore,
    request_of: Requests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    turn: int,
) -> None:
    made: list[tuple[str, int]] = []
    save = RunStore.save_frames

    def killed(self: RunStore, arm: str, index: int, image: Image.Image) -> tuple[str, str]:
        made.append((arm, index))
        if len(made) == 2 * turn + 2:  # between the two pictures of a batch and their records
            raise KeyboardInterrupt
        return save(self, arm, index, image)

    monkeypatch.setattr(RunStore, "save_frames", killed)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(pipe, request_of(), tmp_path)
    kept = set(RunStore(tmp_path).records())
    own = tmp_path / "records" / "rank-0.jsonl"
    if own.exists():
        own.write_bytes(own.read_bytes() + b'{"arm": "base')  # and a record torn in the middle
    made.clear()
    monkeypatch.setattr(
        RunStore,
        "save_frames",
        lambda self, arm, i, image: made.append((arm, i)) or save(self, arm, i, image),
    )
    resumed = run_comparison(pipe, request_of(), tmp_path)
    assert not kept & set(made)
    assert len(own.read_text().splitlines()) == 20
    assert digests(resumed) == digests(finished)


@pytest.mark.parametrize("write", [1, 6, 9])
def test_a_full_disk_stops_the_run_and_leaves_it_resumable(
    pipe: Any,
    finished: RunStore,
    request_of: Requests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: int,
) -> None:
    calls: list[int] = []
    fsync = os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("hasten._records.os.fsync", full)
        with pytest.raises(HastenError, match="No space left"):
            run_comparison(pipe, request_of(), tmp_path)
    assert list(tmp_path.rglob("*.part")) == []
    assert digests(run_comparison(pipe, request_of(), tmp_path)) == digests(finished)


def test_a_lost_or_damaged_picture_is_made_again(
    pipe: Any, finished: RunStore, request_of: Requests, tmp_path: Path
) -> None:
    run_comparison(pipe, request_of(), tmp_path)
    (tmp_path / "images" / "baseline" / "00001.png").unlink()
    (tmp_path / "images" / "repeat" / "00002.png").write_bytes(b"damaged")
    assert digests(run_comparison(pipe, request_of(), tmp_path)) == digests(finished)


def test_another_request_does_not_continue_a_run(finished: RunStore, request_of: Requests) -> None:
    with pytest.raises(ConfigError, match="another seed"):
        run_comparison(None, request_of(seed=1), finished.folder)


def test_processes_make_the_pictures_of_a_single_one(
    pipe: Any, finished: RunStore, request_of: Requests, tmp_path: Path
) -> None:
    request = request_of()
    first = Processes(0, 2)
    with pytest.raises(HastenError, match="10 of 20"):  # the other process is not there yet
        run_comparison(pipe, request, tmp_path, processes=first, patience=0.1)
    run_comparison(pipe, request, tmp_path, processes=Processes(1, 2))
    store = run_comparison(pipe, request, tmp_path, processes=first)
    assert digests(store) == digests(finished)
    for rank in (0, 1):
        assert len((tmp_path / "records" / f"rank-{rank}.jsonl").read_text().splitlines()) == 10
    # Another number of processes continues, and finds nothing left to do.
    assert digests(run_comparison(None, request, tmp_path)) == digests(finished)


def test_processes_come_from_the_launcher() -> None:
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert Processes.from_environment(environment) == Processes(3, 4, 1)
    assert Processes.from_environment({}) == Processes(0, 1, 0)
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        Processes.from_environment({"RANK": "2", "WORLD_SIZE": "2"})


def test_waiting_ends_only_without_progress() -> None:
    states = iter([0, 0, 1, 1, 2, 3])
    wait_for(lambda: next(states), 3, "pictures", patience=0.05, interval=0.02)


@pytest.mark.parametrize("name", ["Baseline", "fewer_steps", "repeat", "***"])
def test_a_configuration_may_not_take_the_name_of_another_row(request_of: Requests, name: str) -> None:
    request = request_of()
    with pytest.raises(ConfigError, match="can't be named"):
        Request("m", request.job, {name: next(iter(request.candidates.values()))})


def test_order_rotates_and_all_arms_of_a_batch_run_back_to_back(
    request_of: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_turn", lambda pipe, arm, batch, number, start: (arm.name, number, start))
    arms = [Arm(name, "control", 1) for name in "abc"]
    order = list(turns(None, arms, request_of(6).job))
    assert [number for _, number, _ in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "".join(name for name, _, _ in order) == "abcbcacab"


def test_the_pace_leaves_out_what_attaching_takes(
    monkeypatch: pytest.MonkeyPatch, request_of: Requests
) -> None:
    def turn(pipe: Any, arm: Arm, job: Any, number: int, start: int) -> Turn:
        time.sleep(0.02 if arm.name == "slow to attach" else 0.0)
        return Turn(arm, number, (), 1.0, None)

    monkeypatch.setattr(engine, "_turn", turn)
    arms = [Arm("baseline", "baseline", 4), Arm("slow to attach", "candidate", 4)]
    pace = warm_up(None, arms, request_of(2).job)
    assert pace.seconds == {arm.name: (1.0,) * 5 for arm in arms}
    assert pace.warmup == {arm.name: (1.0,) for arm in arms}


def test_costs_that_depend_on_the_prompt_are_means_over_the_list(
    request_of: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(request_of(2).job, prompts=tuple(str(i) for i in range(40)), batch_size=2)
    plain, routed = Arm("baseline", "baseline", 4), Arm("routed", "candidate", 4)
    seen: list[tuple[str, ...]] = []

    def turn(pipe: Any, arm: Arm, job: Any, number: int, start: int) -> Turn:
        seen.append(job.prompts)
        return Turn(arm, number, (), 1.0, None)

    monkeypatch.setattr(engine, "_turn", turn)
    warm_up(None, [plain, routed], job, rounds=1)
    assert set(seen) == {("0", "1")}

    monkeypatch.setattr(Arm, "varies_by_prompt", property(lambda arm: arm.name == "routed"))
    seen.clear()
    warm_up(None, [plain, routed], job, rounds=1)
    assert {len(prompts) for prompts in seen} == {16}
    assert {prompts[-1] for prompts in seen} == {"37"}

    monkeypatch.setattr(engine, "generate", lambda pipe, job: job.prompts)
    monkeypatch.setattr("hasten.eval.efficiency.count_flops", lambda run: (seen.append(run()), 320)[1])
    seen.clear()
    assert (flops_of(None, plain, job), flops_of(None, routed, job)) == (320, 20)
    assert [len(prompts) for prompts in seen] == [1, 16]


def test_equal_time_steps_follow_the_measured_pace() -> None:
    # The machine was twice as slow in the second round: only ratios within a round count.
    seconds = {"baseline": (2.0, 4.0), "half": (1.0, 2.0), "slow": (2.2, 4.4), "free": (0.001, 0.002)}
    assert equal_time_steps(20, Timings(seconds)) == {"half": 10, "slow": 22, "free": 1}
    assert [arm.name for arm in control_arms(20, {"a": 10, "b": 5})][2:] == [
        "fewer steps (a)",
        "fewer steps (b)",
    ]
