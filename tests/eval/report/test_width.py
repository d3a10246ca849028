"""A report with many columns, long names and long prompts: nothing of it is cut, on a desk or on a phone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hasten.eval.compare.store import RunStore
from hasten.eval.report.page import render_page

from .browser import Browser
from .conftest import NAME

LONG = "a_configuration_file_with_a_very_long_name-" * 3 + "and $dollars$ and \\backslashes\\"
METRICS = 14
CUT = """(() => {
  const name = (e) => `${e.tagName}.${e.className} ${e.id} ${(e.textContent || "").trim().slice(0, 40)}`;
  const all = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("svg, .skip"));
  const wide = all.filter((e) => e.getBoundingClientRect().right > window.innerWidth + 1);
  const hidden = all.filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0
    && !["inline", "inline-block"].includes(getComputedStyle(e).display)
    && (getComputedStyle(e).overflowX !== "visible" || e.tagName === "TD" || e.tagName === "TH"));
  const drawn = [...document.querySelectorAll("svg text")].filter((e) => {
    const own = e.getBoundingClientRect(), room = e.ownerSVGElement.getBoundingClientRect();
    return own.width > 0 && (own.right > room.right + 1 || own.left < room.left - 1);
  });
  return [...new Set([...wide, ...hidden, ...drawn].map(name))];
})()"""


class Grey(RunStore):
    """A run of any rows, all pictures grey."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._run = run

    def read_run(self) -> dict[str, Any]:
        return self._run

    def open_frames(self, arm: str, index: int) -> tuple[Image.Image, ...]:
        return (Image.new("RGB", (64, 64), "grey"),)


def stretched(document: dict[str, Any]) -> dict[str, Any]:
    """The document with long names, long prompts and many metrics."""
    wide: dict[str, Any] = json.loads(
        json.dumps(document).replace(json.dumps(NAME)[1:-1], json.dumps(LONG)[1:-1])
    )
    wide["prompts"] = [f"{prompt}, " * 8 + "x" * 120 for prompt in wide["prompts"]]
    for number in range(METRICS):
        name = f"a_rather_long_metric_{number}"
        differences = [contest["differences"] for contest in wide["contests"].values()]
        for part in (wide["metrics"], wide["scores"], *wide["figures"].values(), *differences):
            if "mini_parser" in part:
                part[name] = part["mini_parser"]
    wide["model"] = "/models/" + "a-folder-deep-down/" * 12 + "x" * 90
    wide["times"]["command"] = "hasten compare --prompts " + "y" * 200
    return wide


def test_the_tables_on_the_console_fit_80_columns(document: dict[str, Any]) -> None:
    from hasten._console import Console
    from hasten.eval.compare.table import print_report

    console = Console(file=(out := io.StringIO()), width=80)
    print_report(document, console, [])
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]


@pytest.fixture(scope="module")
def wide_browser(
    store: RunStore, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    run = store.read_run()
    assert run is not None
    page = tmp_path_factory.mktemp("wide") / "report.html"
    page.write_text(render_page(Grey(run), stretched(document)))
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(page)
        yield opened


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut(wide_browser: Browser, width: int, tmp_path: Path) -> None:
    wide_browser.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    wide_browser.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    wide_browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert wide_browser.evaluate("document.documentElement.scrollWidth") <= width
    assert wide_browser.evaluate(CUT) == []
    assert wide_browser.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_of_an_ordinary_report_is_cut(browser: Browser, width: int) -> None:
    browser.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.evaluate(CUT) == []


def test_a_card_says_what_each_figure_is_and_cards_sort(wide_browser: Browser) -> None:
    wide_browser.send(
        "Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=False
    )
    wide_browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    first = "document.querySelector('#rows table.stacked tbody td')"
    assert wide_browser.evaluate(f"getComputedStyle({first}, '::before').content") == '"steps"'
    assert wide_browser.evaluate("document.querySelector('#samples.stacked thead button').checkVisibility()")
