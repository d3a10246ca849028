import subprocess
import sys
from dataclasses import replace

import pytest

from hasten._errors import CheckpointError, UnsupportedError
from hasten._plugins import host
from hasten.pipelines import mini


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UnsupportedError, match="mini/t2i-dit"):
        mini.path("mini/nothing")


def test_names_work_with_and_without_their_prefix():
    for name in mini.names():
        assert mini.path(name) == mini.path(name.removeprefix("mini/"))


def test_missing_weights_are_answered_with_the_command_that_makes_them(monkeypatch, tmp_path):
    models = host().registry.models
    monkeypatch.setitem(models, "mini/t2i-dit", replace(models["mini/t2i-dit"], folder=tmp_path))
    with pytest.raises(CheckpointError, match="hasten mini train t2i-dit"):
        mini.path("mini/t2i-dit")


def test_a_folder_without_settings_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"hasten\.json"):
        mini.recommended_call(tmp_path)


def test_importing_the_package_stays_light():
    code = (
        "import sys, hasten.pipelines.mini; print({'diffusers', 'transformers', 'scipy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_a_miniature_of_the_other_distribution_is_answered_with_its_name(monkeypatch):
    monkeypatch.delitem(host().registry.models, "mini/t2v-dit")
    with pytest.raises(UnsupportedError, match=r"hasten-miniatures.*pip install \./examples/miniatures"):
        mini.load("mini/t2v-dit")
