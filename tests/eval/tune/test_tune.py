"""``hasten tune`` on an untrained pipeline that makes 32-pixel pictures: from prompts to a configuration file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from hasten import Config, _generation
from hasten._cli import build_app
from hasten.commands import Config as _Config
from hasten.commands import Job, host
from hasten.eval.compare import engine
from hasten.eval.compare.store import RunStore
from hasten.eval.tune import search as searching
from hasten.eval.tune.budget import Noise
from hasten.eval.tune.search import Search
from hasten.eval.tune.space import space_of
from hasten.pipelines import mini

Tune = Callable[..., Result]
CALL = ("--steps", 5, "--height", 32, "--width", 32, "--minutes", 60, "-m", "ssim")
FAST = ("-e", "bottleneck", "-s", "bottleneck.min_pixels=16", "-s", "bottleneck.scale=0.5")


@pytest.fixture(scope="module")
def tune(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tune:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(mini.prompts(12)))

    def run(*arguments: Any) -> Result:
        words = ("tune", folder, "--prompts", prompts, *CALL, *FAST, *arguments)
        return CliRunner().invoke(build_app(), [str(word) for word in words])

    return run


@pytest.fixture(scope="module", autouse=True)
def _soon_stale() -> Any:
    """A search of this little space ends as soon as nothing new comes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "_STALE", 6)
        yield


@pytest.fixture(scope="module", autouse=True)
def _times_of_work() -> Any:
    """Seconds are what the denoiser computed, so that the answer does not depend on the machine."""
    done = 0.0

    def add(module: torch.nn.Module, _: Any, output: Any) -> None:
        nonlocal done
        if type(module).__name__ == "SD3Transformer2DModel":
            done += 1e-5 * output[0].numel()

    hook = torch.nn.modules.module.register_module_forward_hook(add)
    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, _generation):
            patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: done))
        yield
    hook.remove()


@pytest.fixture(scope="module")
def finished(tune: Tune, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("tune")
    result = tune("--margin", "ssim=0.5", "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


def test_it_answers_with_a_configuration_that_commands_take(
    finished: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    out, _ = finished
    config = Config.of(out / "tuned.yaml")
    assert (config.steps, config.height, config.model) == (4, 32, str(folder))
    comment = (out / "tuned.yaml").read_text().partition("schema:")[0]
    assert "the reference's speed" in comment
    assert "Confirmed on 6 prompts that the search never saw" in comment
    words = [
        "generate",
        "--config",
        str(out / "tuned.yaml"),
        "--prompt",
        "a red circle",
        "--out",
        str(tmp_path),
    ]
    made = CliRunner().invoke(build_app(), words)
    assert made.exit_code == 0, made.output


def test_it_leaves_the_evidence(finished: tuple[Path, Result]) -> None:
    out, result = finished
    document = json.loads((out / "tune.json").read_text())
    assert document["budget"]["search"] + document["budget"]["confirm"] == 12
    plain = [r for r in document["results"] if not r["setting"]["techniques"]]
    assert {r["setting"]["steps"] for r in plain} == {4}
    assert document["answer"]["confirmed"]
    assert all(entry["outcomes"] == {"ssim": "held"} for entry in document["confirmed"])
    assert set(document["techniques"]) == {"bottleneck"}
    assert document["sweep"]["quantities"][0]["margin"] == 0.5
    assert (out / "sweep-ssim.png").stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert "hasten tune" in page
    assert 'id="sweep"' in page
    assert "bottleneck" in result.stdout


def test_what_is_confirmed_on_was_never_searched_on(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    document = json.loads((out / "tune.json").read_text())
    (place,) = (out / "confirm").iterdir()
    run = RunStore(place).read_run()
    assert run is not None
    searched = document["request"]["prompts"][: document["budget"]["search"]]
    assert not set(run["request"]["prompts"]) & set(searched)
    assert run["request"]["seed"] == document["budget"]["search"]  # and from other noise


def test_a_finished_tuning_is_not_made_again(finished: tuple[Path, Result], tune: Tune) -> None:
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if "images" in path.parts}
    again = tune("--margin", "ssim=0.5", "--out", out)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = tune("--margin", "ssim=0.4", "--out", out)
    assert other.exit_code == 2
    assert "another margins" in other.stderr


def test_ctrl_c_keeps_the_best_so_far_and_the_same_command_goes_on(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By FLOPs the order of looks does not depend on the machine.
    monkeypatch.setattr(Noise, "of", classmethod(lambda cls, seconds: cls(0.5)))
    look, calls = Search._look, []

    def interrupted(self: Search, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return look(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_look", interrupted)
        stopped = tune("--margin", "ssim=0.5", "--out", tmp_path)
    assert stopped.exit_code == 130
    text = (tmp_path / "tuned.yaml").read_text()
    assert "not confirmed" in text
    assert Config.of(tmp_path / "tuned.yaml").steps == 4
    resumed = tune("--margin", "ssim=0.5", "--out", tmp_path, "--json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["answer"]["confirmed"]


def test_a_noisy_machine_goes_by_flops_and_says_so(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Noise, "of", classmethod(lambda cls, seconds: cls(0.5)))
    result = tune("--margin", "ssim=0.5", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert "too noisy to time (equal batches spread by 50 %): FLOPs decide" in document["warnings"][0]
    assert document["sweep"]["quantities"][0]["axis"] == "share of the reference's FLOPs"
    assert "by FLOPs" in document["answer"]["sentence"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--margin", "ssim=-0.1"), "it is 0 or more whichever way the metric points"),
        (("--margin", "ssim=0"), "no number of prompts can confirm"),
        (("--margin", "psnr=1"), "no largest score"),
        (("--margin", "clip_score=0.5"), "clip_score needs a network"),
        (("--margin", "sim=0.5"), "unknown metric 'sim'"),
        ((), "which loss do you tolerate"),
        (("--margin", "ssim=0.5", "--minutes", "0"), "--minutes 0.0: give the minutes"),
        (("--margin", "ssim=0.5", "--minutes", "0.0001"), "minutes are too short for one round"),
        (("--margin", "ssim=0.5", "--num-prompts", "8"), "8 prompts are too few to tune on"),
        (("--margin", "ssim=0.0001", "--steps", "9"), "needs about"),
    ],
)
def test_bad_input_is_told_with_its_remedy(
    tune: Tune, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = tune("--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_a_plugin_that_is_installed_is_searched_too_as_claims_allow(pipe: Any) -> None:
    import hasten_every_other

    unregister = host().register(hasten_every_other, "every_other")
    try:
        call = {"num_inference_steps": 5, "height": 32, "width": 32, "max_sequence_length": 0}
        job = Job(tuple(mini.prompts(2)), 0, call)
        space = space_of(pipe, job, (None,), None, steps_are_free=True)
        names = [technique.name for technique in space.techniques]
        assert "every_other" in names
        assert "bottleneck" in names
        assert "tokens.shape" in space.conflicts[frozenset({"bottleneck", "every_other"})]
        assert "hack" in space.excluded
        tried = [setting.techniques for setting in space.first_settings((4,))]
        assert {"every_other": {}} in tried
        only = space_of(pipe, job, (None,), _Config.of({"bottleneck": {"delta": 0.1}}), steps_are_free=True)
        assert [(t.name, dict(t.fixed)) for t in only.techniques] == [("bottleneck", {"delta": 0.1})]
        assert "delta" not in only.techniques[0].free
    finally:
        unregister()


@pytest.mark.slow
def test_the_flagship_is_tuned_in_three_minutes(tmp_path: Path) -> None:
    words = ["tune", "mini/t2i-dit", "--num-prompts", "48", "--margin", "mini_parser=0.15", "--minutes", "3"]
    words += ["--height", "128", "--width", "128", "-e", "bottleneck", "-s", "bottleneck.min_pixels=4096"]
    result = CliRunner().invoke(build_app(), [*words, "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["answer"]["confirmed"]
    assert document["answer"]["kind"] in ("techniques", "plain")
    assert Config.of(tmp_path / "tuned.yaml").steps == document["answer"]["setting"]["steps"]


def test_metrics_run_where_the_pipeline_does(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.eval.commands import options

    made, places = options.build_metrics, []

    def noted(names: Any, assignments: Any, device: str | None = None) -> Any:
        places.append(device)
        return made(names, assignments, device)

    monkeypatch.setattr(options, "build_metrics", noted)
    tune("--margin", "ssim=0", "--device", "cpu", "--out", tmp_path)
    assert places == ["cpu"]
