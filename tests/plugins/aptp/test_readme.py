"""What the technique's page says of the shipped bundle."""

import importlib.util
import json
from pathlib import Path

import pytest

from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.make.evaluate import static_expert
from hasten.plugins.aptp.plugin import BUNDLES

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("aptp_page", ROOT / "docs" / "benchmarks" / "aptp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["traffic", "kinds"])
def test_the_tables_are_those_of_the_committed_figures(page, name):
    figures, text = json.loads(page.figures_file(name).read_text("utf-8")), page.README.read_text("utf-8")
    assert page.rendered(text, name, figures) == text
    assert page.TABLES[name](figures) in text
    assert "| one object in a corner |" in page.TABLES[name](figures)


def test_prompts_that_a_cheap_expert_gets_wrong_go_to_costlier_ones(page):
    rows = json.loads(page.figures_file("traffic").read_text("utf-8"))["traffic"]
    kinds = json.loads(page.figures_file("kinds").read_text("utf-8"))["right"]
    cost = {row["kind"]: row["macs_share"] for row in rows if row["kind"] != "all"}
    right = {kind: cells[1]["all"] for kind, cells in kinds.items()}
    assert max(right, key=right.__getitem__) == min(cost, key=cost.__getitem__)
    assert min(right, key=right.__getitem__) == max(cost, key=cost.__getitem__)


def test_the_static_control_is_the_expert_of_about_the_mean_cost():
    text = (ROOT / "examples" / "aptp" / "static-expert.yaml").read_text("utf-8")
    assert f"expert: {static_expert(Bundle.load(BUNDLES / 't2i-unet').manifest)}\n" in text


def test_the_shipped_bundle_is_small_and_spans_forty_to_ninety_percent():
    folder = BUNDLES / "t2i-unet"
    assert sum(file.stat().st_size for file in folder.rglob("*")) <= 2_000_000
    shares = [expert.macs_share for expert in Bundle.load(folder).manifest.experts]
    assert len(shares) >= 4
    assert 0.35 < min(shares) < 0.5
    assert 0.8 < max(shares) < 0.95
