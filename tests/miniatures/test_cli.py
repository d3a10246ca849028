import json

import pytest
from typer.testing import CliRunner

from hasten._errors import CheckpointError, ConfigError
from hasten_miniatures.commands import _EXPORTS, _RUNS, app
from hasten_miniatures.evaluate import Row
from hasten_miniatures.export import EXPORTS, figures_table
from hasten_miniatures.provenance import write_record
from hasten_miniatures.runs import RUNS, RunOptions, recipe, run


@pytest.fixture
def invoke():
    runner = CliRunner()
    return lambda *words: runner.invoke(app, list(words))


def row(right, bar, split="train", judge="parser"):
    return Row(split, 128, judge, right, right - 0.02, right + 0.02, 10, bar, {})


def test_unknown_models_are_answered_with_the_known_ones(invoke, tmp_path):
    for command in (("train", "nothing"), ("export", "nothing", str(tmp_path))):
        error = invoke(*command).exception
        assert isinstance(error, ConfigError)
        assert "t2i-dit" in str(error)


def test_the_help_names_every_run_and_every_export(invoke):
    shown = invoke("train", "--help").stdout.replace("\n", " ")
    assert all(name in _RUNS.split(", ") for name in RUNS)
    assert "video-autoencoder" in shown
    assert all(name in _EXPORTS.replace(" or ", ", ").split(", ") for name in EXPORTS)


def test_exporting_before_training_says_what_to_run(invoke, tmp_path):
    error = invoke("export", "scorers", str(tmp_path / "out"), "--runs", str(tmp_path / "none")).exception
    assert isinstance(error, CheckpointError)
    assert "hasten mini train text-image" in str(error)


@pytest.mark.parametrize("bundled", [False, True])
def test_parts_that_are_not_there_are_trained_before_the_whole(monkeypatch, tmp_path, bundled):
    order = []
    if not bundled:
        monkeypatch.setattr("hasten_miniatures.runs.mini.names", list)
    monkeypatch.setattr("hasten_miniatures.runs.recipe", lambda name, *_, **__: name)
    monkeypatch.setattr(
        "hasten_miniatures.runs.train", lambda name, *_, **options: order.append((name, options))
    )
    run("t2i-dit", tmp_path, RunOptions(steps=9, compiled=True, seed=4))
    parts = () if bundled else RUNS["t2i-dit"].requires
    assert [name for name, _ in order] == [*parts, "t2i-dit"]
    assert order[-1][1]["command"] == "hasten mini train t2i-dit --steps 9 --seed 4 --device cpu --compile"


def test_compiling_is_refused_where_the_recipe_cannot(tmp_path):
    with pytest.raises(ConfigError, match="'t2i-unet' cannot be compiled"):
        run("t2i-unet", tmp_path, RunOptions(compiled=True))


@pytest.mark.parametrize("name", ["t2i-dit", "var"])
def test_a_compiled_recipe_knows_it(tmp_path, name):
    assert recipe(name, tmp_path, compiled=True).compiled


def test_a_finished_part_is_left_alone_whatever_made_it(monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr("hasten_miniatures.runs.recipe", lambda name, *_, **__: name)
    monkeypatch.setattr("hasten_miniatures.runs.train", lambda name, *_, **__: begun.append(name))
    (tmp_path / "video-autoencoder").mkdir()
    run("t2v-dit", tmp_path)
    assert begun == ["video-autoencoder", "t2v-dit"]
    write_record(tmp_path / "video-autoencoder", {"command": "hasten mini train video-autoencoder --seed 7"})
    run("t2v-dit", tmp_path)
    assert begun[2:] == ["t2v-dit"]


@pytest.fixture
def measured(monkeypatch):
    rows = [row(0.95, 0.9), row(0.7, 0.8, "held_out")]
    monkeypatch.setattr("hasten.commands.load_quietly", lambda *_: None)
    monkeypatch.setattr("hasten_miniatures.evaluate.evaluate", lambda *_, **__: rows)
    return rows


def test_a_missed_bar_is_exit_code_three(invoke, measured):
    result = invoke("eval", "mini/t2i-dit")
    assert result.exit_code == 3
    assert "0.80 missed" in result.stdout


def test_figures_come_as_json_too(invoke, measured):
    measured.pop()
    result = invoke("eval", "mini/t2i-dit", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["right"] == 0.95


def test_the_table_of_the_readme_has_a_column_for_each_judge():
    lines = figures_table([row(0.95, 0.9, judge="classifier"), row(0.93, 0.9, judge="parser")])
    assert lines[2] == "| prompts | pixels | bar | classifier | parser |"
    assert lines[4] == "| trained combinations | 128 | 0.90 | 0.950 [0.930, 0.970] | 0.930 [0.910, 0.950] |"
    assert figures_table([]) == []
