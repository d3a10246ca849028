"""The README's figures are the committed measurement's, and its example runs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_those_of_the_committed_measurements(refresh: ModuleType) -> None:
    shown = list(refresh.shown())
    assert (refresh.README, "miniature") in shown
    for page, name in shown:
        text = page.read_text("utf-8")
        document = json.loads(refresh.figures(name).read_text("utf-8"))
        assert refresh.rendered(text, name, document) == text, (page, name)
        assert "| baseline |" in text


def test_the_example_runs_and_prints_lines_of_the_same_form(refresh: ModuleType, tmp_path: Path) -> None:
    text = refresh.README.read_text("utf-8")
    printed = refresh.run_example(text, tmp_path)
    shown = json.loads(refresh.figures("miniature").read_text("utf-8"))["example"]
    # Milliseconds differ from run to run, what ran must not.
    assert [re.sub(r"\d+ ms", "", line) for line in printed.splitlines()] == [
        re.sub(r"\d+ ms", "", line) for line in shown.splitlines()
    ]
    assert (tmp_path / "circle.png").stat().st_size > 0


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/*/README.md")], ids=str
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_metric_is_explained() -> None:
    from hasten.eval.builtin import METRICS

    page = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    assert [name for name in METRICS if f"`{name}`" not in page] == []
