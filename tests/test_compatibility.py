"""docs/compatibility.md says what the code does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compatibility() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compatibility", ROOT / "docs" / "compatibility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_family_and_adapter_has_its_row(compatibility: ModuleType) -> None:
    from families import FAMILIES

    from hasten._plugins import host

    text = compatibility.PAGE.read_text("utf-8")
    assert [name for name in FAMILIES if f"| {name} |" not in text] == []
    assert [name for name in host().registry.adapters if f"`{name}`" not in text] == []


def test_the_table_of_classes_is_what_registry_and_trials_say(compatibility: ModuleType) -> None:
    text = compatibility.PAGE.read_text("utf-8")
    assert compatibility.with_classes(text) == text, "run python docs/compatibility.py classes"


def test_no_trial_went_wrong(compatibility: ModuleType) -> None:
    trials = json.loads(compatibility.RESULTS.read_text("utf-8"))
    wrong = {
        name: trial
        for name, trial in trials.items()
        if any(
            told.startswith(("WRONG", "FAILED")) for told in (trial["oracle"], *trial["techniques"].values())
        )
    }
    assert wrong == {}


@pytest.mark.slow
def test_the_page_is_what_trying_everything_gives(
    compatibility: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_BLOCK_PLUGINS", "1")
    assert compatibility.page() == compatibility.PAGE.read_text("utf-8")
