"""A spectrum that nobody knows is measured in the first call and kept for the autoencoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline
from typer.testing import CliRunner

import hasten
from hasten._cli import build_app
from hasten.plugins.bottleneck.learned import LearnedSpectrum, autoencoder_of, entry_of, keep, measure, recall
from hasten.schedules.spectrum import Spectrum

LEARNS = {"bottleneck": {"min_pixels": 1}}
LEARNED = LearnedSpectrum(Spectrum(30.0, 2.0), 3, (16, 24))


def facts(pipe: Any, options: dict[str, Any] = LEARNS) -> Any:
    return hasten.plan(pipe, options, height=32, width=48).techniques[0].forecast.facts


def place(pipe: Any) -> Path:
    autoencoder = autoencoder_of(pipe)
    assert autoencoder is not None
    path = entry_of(autoencoder)
    assert path is not None
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def entry() -> Path:
    return place(FAMILIES["sd3"]())


@pytest.mark.parametrize("name", ["sd3", "sdxl", "qwen-image"])
def test_the_second_call_uses_what_the_first_one_measured(name: str) -> None:
    pipe = FAMILIES[name]()
    assert "measures the spectrum" in str(hasten.plan(pipe, LEARNS))
    with hasten.accelerate(pipe, LEARNS) as acceleration:
        baseline(pipe, name)
        (note,) = [note for note in acceleration.report().notes if "spectrum" in note]
    path = place(pipe)
    if "could not be measured" in note:  # the random model's latents
        assert not path.exists()
        return
    assert path.exists()
    assert str(path) in note
    plan = hasten.plan(FAMILIES[name](), LEARNS)
    assert "no power spectrum is known" not in str(plan)
    assert plan.techniques[0].forecast.facts["spectrum"].startswith("measured on ")


def test_the_measured_latents_are_those_the_run_ends_with() -> None:
    pipe = FAMILIES["sd3"]()
    with hasten.accelerate(pipe, LEARNS) as acceleration:
        final = baseline(pipe, "sd3")
        (found,) = [
            s.facts["bottleneck"] for s in acceleration.report().steps if "kept" in s.facts["bottleneck"]
        ]
    law = measure(final.float()).spectrum
    assert found["measured"] == pytest.approx([law.amplitude, law.exponent], rel=0.2)


def test_it_can_be_switched_off(entry: Path) -> None:
    pipe = FAMILIES["sd3"]()
    off = {"bottleneck": {"min_pixels": 1, "learn_spectrum": False}}
    with hasten.accelerate(pipe, off):
        baseline(pipe, "sd3")
    assert not entry.exists()
    keep(entry.stem, LEARNED)
    assert facts(pipe, off)["spectrum"].startswith("unknown")
    assert facts(pipe)["spectrum"] == "measured on 3 pictures of an earlier call"


def test_processes_side_by_side_do_not_rely_on_it(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(entry.stem, LEARNED)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert facts(FAMILIES["sd3"]())["spectrum"].startswith("unknown")


def test_an_entry_is_for_one_autoencoder() -> None:
    pipe, other = FAMILIES["sd3"](), FAMILIES["sd3"]()
    assert autoencoder_of(pipe) == autoencoder_of(other)
    with torch.no_grad():
        next(other.vae.parameters()).mul_(1.01)
    assert autoencoder_of(pipe) != autoencoder_of(other)
    pipe.vae = None
    assert autoencoder_of(pipe) is None


def test_power_grows_with_the_number_of_pixels() -> None:
    assert LEARNED.at((32, 48)) == Spectrum(120.0, 2.0)
    assert LEARNED.at((16, 24)) == LEARNED.spectrum


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 1}', "[]"])
def test_a_damaged_entry_is_made_again(entry: Path, damage: str) -> None:
    keep(entry.stem, LEARNED)
    assert recall(entry.stem) == LEARNED
    text = entry.read_text("utf-8")
    entry.write_text(damage or text.replace("30.0", "31.0"), "utf-8")
    assert recall(entry.stem) is None
    keep(entry.stem, LEARNED)
    assert recall(entry.stem) == LEARNED


def test_writers_do_not_disturb_each_other(entry: Path) -> None:
    def write(number: int) -> LearnedSpectrum | None:
        keep(entry.stem, LearnedSpectrum(Spectrum(float(number + 1), 2.0), 1, (16, 16)))
        return recall(entry.stem)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write, range(64)))
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written_lasts_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for number, folder in enumerate((str(tmp_path / "file"), "")):
        monkeypatch.setenv("HASTEN_CACHE", folder)
        assert keep(f"unwritten {number}", LEARNED) is None
        assert recall(f"unwritten {number}") == LEARNED


def test_the_command_generates_pictures_where_it_is_given_none() -> None:
    arguments = [
        "spectrum",
        "mini/t2i-dit",
        "--num-prompts",
        "1",
        "--steps",
        "2",
        "--side",
        "64",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    path = place(hasten.load("mini/t2i-dit"))
    assert str(path) in result.stderr
    assert recall(path.stem) is not None
