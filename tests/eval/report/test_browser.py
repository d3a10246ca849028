"""The page in a real browser: no errors, no requests, and everything reachable and working by keyboard."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .browser import Browser, find_chromium

COLUMN = "[...document.querySelectorAll('#samples tbody tr')].map(r => Number(r.cells[4].dataset.v))"


def focus(browser: Browser, selector: str) -> None:
    browser.evaluate(f"document.querySelector({selector!r}).focus()")


def test_it_loads_without_errors_and_asks_for_nothing(browser: Browser) -> None:
    assert browser.complaints == []
    assert browser.requests == []
    assert browser.evaluate("document.querySelectorAll('main section').length") == 9
    broken = "[...document.querySelectorAll('#pictures img')].filter(i => !i.naturalWidth).length"
    assert browser.evaluate(broken) == 0


def test_nothing_is_wider_than_the_window(browser: Browser) -> None:
    for width in (1280, 390):
        browser.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_text_has_enough_contrast_in_either_scheme(browser: Browser) -> None:
    contrast = """(() => {
      const style = getComputedStyle(document.documentElement), probe = document.createElement("i");
      document.body.append(probe);
      const light = (name) => {
        probe.style.color = style.getPropertyValue(name);
        const rgb = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
      };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const names = ["--ink", "--faint", "--accent", "--good", "--bad", "--unsure"];
      const grounds = [light("--paper"), light("--panel")];
      const worst = Math.min(...names.flatMap((n) => grounds.map((ground) => ratio(light(n), ground))));
      probe.remove();
      return worst;
    })()"""
    assert browser.evaluate(contrast) >= 4.5


def test_columns_sort_both_ways_by_keyboard(browser: Browser) -> None:
    focus(browser, "#samples th:nth-child(5) button")
    browser.press("Enter", 13)
    ascending = browser.evaluate(COLUMN)
    assert ascending == sorted(ascending)
    assert browser.evaluate("document.querySelector('#samples [aria-sort]').ariaSort") == "ascending"
    browser.press("Enter", 13)
    assert browser.evaluate(COLUMN) == ascending[::-1]
    assert browser.evaluate("document.querySelectorAll('#samples [aria-sort]').length") == 1


def test_the_slider_moves_the_divider_by_keyboard(browser: Browser) -> None:
    focus(browser, "#slide")
    browser.evaluate("document.getElementById('slide').value = 50")
    for _ in range(3):
        browser.press("ArrowRight", 39)
    assert browser.evaluate("document.getElementById('viewer').style.getPropertyValue('--cut')") == "53%"
    clip = browser.evaluate("getComputedStyle(document.getElementById('over')).clipPath")
    assert clip == "inset(0px 0px 0px 53%)"


def test_the_flicker_view_alternates_and_can_be_stepped(browser: Browser) -> None:
    visible = "getComputedStyle(document.getElementById('over')).visibility"
    browser.evaluate("document.querySelector('input[value=flicker]').click()")
    seen = set()
    for _ in range(40):
        seen.add(browser.evaluate(visible))
        time.sleep(0.1)
        if len(seen) == 2:
            break
    assert seen == {"visible", "hidden"}
    focus(browser, "#flip")
    browser.press("Enter", 13)
    stepped = browser.evaluate(visible)
    time.sleep(0.8)  # stepping by hand ends the alternation
    assert browser.evaluate(visible) == stepped
    browser.press("Enter", 13)
    assert browser.evaluate(visible) != stepped
    assert browser.evaluate("document.getElementById('showing').textContent").startswith("showing")
    browser.evaluate("document.querySelector('input[value=slider]').click()")


def test_choosing_a_picture_opens_it_in_the_viewer(browser: Browser) -> None:
    browser.evaluate('document.querySelector(\'[data-index="7"][data-arm="other-seed"]\').click()')
    for side, arm in (("under", "baseline"), ("over", "other-seed")):
        same = f"document.getElementById('{side}').src === document.getElementById('p7-{arm}').src"
        assert browser.evaluate(same)
    assert browser.evaluate("document.getElementById('against').value") == "other-seed"
    assert browser.evaluate("document.activeElement.id") == "slide"


def test_the_gallery_is_filtered_by_metric(browser: Browser) -> None:
    shown = "document.querySelectorAll('.prompt:not([hidden])').length"
    everything = browser.evaluate(shown)
    choose = (
        "const f = document.getElementById('filter'); f.value = '%s'; f.dispatchEvent(new Event('change'))"
    )
    browser.evaluate("{" + choose % "mini_parser" + "}")
    assert 0 < browser.evaluate(shown) < everything
    browser.evaluate("{" + choose % "" + "}")
    assert browser.evaluate(shown) == everything


def test_it_prints_on_white_with_every_part_open(browser: Browser) -> None:
    pdf = browser.send("Page.printToPDF", printBackground=True)["data"]
    assert len(pdf) > 10_000
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.getElementById('closer')).display") == "none"
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert browser.complaints == []


def test_a_machine_without_a_browser_fails_and_is_told_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="apt-get install"):
        find_chromium()
