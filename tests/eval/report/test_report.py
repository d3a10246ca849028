"""What the page says, before any browser sees it."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from hasten._errors import ConfigError
from hasten.eval.compare.document import missed_gates
from hasten.eval.compare.store import RunStore
from hasten.eval.report import unavailable
from hasten.eval.report.charts import pareto, timeline
from hasten.eval.report.page import render_page
from hasten.eval.report.pictures import choose_prompts, data_uri

from .conftest import COUNT, NAME


class Elements(HTMLParser):
    """Identifiers, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.identifiers: list[str] = []
        self.addresses: list[str] = []
        self.unnamed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        if fields.get("id"):
            self.identifiers.append(str(fields["id"]))
        self.addresses += [str(fields[k]) for k in ("src", "href", "xlink:href") if fields.get(k)]
        if tag == "img" and "alt" not in fields:
            self.unnamed.append(str(fields))


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text()


def test_the_page_stands_alone(text: str) -> None:
    elements = Elements(text)
    assert all(address.startswith(("data:", "#")) for address in elements.addresses)
    assert not re.search(r"url\((?!#)", text)
    assert not re.search(r"@import|<link [^>]*stylesheet|<script [^>]*src", text)
    assert "default-src 'none'" in text


def test_what_is_not_read_of_the_reference_is_on_the_page(store: RunStore, tmp_path: Path) -> None:
    from hasten.eval.compare.document import Evaluation, evaluate_run
    from hasten.eval.metrics.miniature import Frechet
    from hasten.eval.pictures.loading import Reading
    from hasten.eval.scoring.reference import Reference

    shutil.copytree(store.folder, tmp_path / "run")
    real = tmp_path / "real"
    real.mkdir()
    for i in range(3):
        store.open_image("baseline", i).save(real / f"{i}.png")
    (real / "2.png").write_bytes(b"")
    (real / "gone.png").symlink_to(tmp_path / "nowhere")
    (real / "x.heic").write_bytes(b"x")
    copy = RunStore(tmp_path / "run")
    made = evaluate_run(copy, Evaluation([Frechet()], Reference(real, reading=Reading(skip_bad=True))))
    assert made["reference"]["pictures"] == 2
    assert made["reference"]["unread"]["gone.png"] == "broken links"
    page = render_page(copy, made)
    assert "broken links: 1 (gone.png)" in page
    assert ".heic files, an unsupported format: 1 (x.heic)" in page
    assert "pictures that can&#39;t be used: 1 (2)" in page
    assert json.loads((copy.folder / "report.json").read_text())["reference"] == made["reference"]
    with pytest.raises(ConfigError, match="there is no folder"):
        Evaluation([Frechet()], Reference(tmp_path / "nowhere"))


def test_identifiers_are_unique_and_links_lead_somewhere(text: str) -> None:
    elements = Elements(text)
    assert len(elements.identifiers) == len(set(elements.identifiers))
    targets = {address[1:] for address in elements.addresses if address.startswith("#")}
    assert targets <= set(elements.identifiers)
    assert elements.unnamed == []


def test_names_from_the_user_are_escaped(text: str) -> None:
    assert "<b>resolution" not in text
    assert "low &lt;b&gt;resolution" in text


def test_control_characters_are_written_out(store: RunStore, document: dict[str, Any]) -> None:
    prompts = ["\x1b[31m[red]\u202e<b>" for _ in document["prompts"]]
    text = render_page(store, {**document, "prompts": prompts})
    assert r"\x1b[31m[red]\u202e&lt;b&gt;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_every_figure_of_the_document_is_on_the_page(text: str, document: dict[str, Any]) -> None:
    from hasten.eval.compare.wording import change_text, estimate_text

    for row in document["figures"].values():
        for figure in row.values():
            assert estimate_text(figure["value"]) in text
            assert change_text(figure) in text
    assert "not comparable with published" in text


def test_the_winner_is_named_on_the_page(text: str, document: dict[str, Any]) -> None:
    from html import unescape

    from hasten.eval.compare.wording import contest_text, verdict_text

    contest = document["contests"][NAME]
    assert contest["against"] == "fewer steps"
    assert set(contest["differences"]) == {"mini_parser", "psnr", "ssim"}
    page = unescape(unescape(text))
    assert contest_text(document, NAME) in page
    assert verdict_text(document, NAME, "mini_parser") in page
    # True renders of other prompts on one side, on the other pictures that lost a little.
    assert contest["outcome"] == "won"
    assert "<strong>Missed</strong>" in text  # the gate, which is worse than having won is good


def test_charts_take_their_colours_from_the_page(text: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(charts) == 4  # three metrics and one timeline
    for chart in charts:
        assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", chart)) <= {"#ffffff", "#000000"}
        assert "var(--row-1)" in chart


def test_the_emptied_picture_is_the_worst_one_by_every_metric(document: dict[str, Any]) -> None:
    chosen = {entry.index: entry.reasons for entry in choose_prompts(document)}
    for metric in ("mini_parser", "psnr", "ssim"):
        assert ("worst", metric) in chosen[7]
    change = np.subtract(
        document["scores"]["mini_parser"][NAME], document["scores"]["mini_parser"]["baseline"]
    )
    for index, reasons in chosen.items():
        if ("worst", "mini_parser") in reasons:
            assert change[index] < 0


def test_rendering_again_gives_the_same_page(store: RunStore, document: dict[str, Any], text: str) -> None:
    assert render_page(store, document) == text


def test_the_document_is_json_without_loss(store: RunStore, document: dict[str, Any]) -> None:
    assert json.loads((store.folder / "report.json").read_text()) == document
    (missed,) = missed_gates(document)
    assert missed["gate"] == "speedup.low>=3"
    assert document["figures"][NAME]["psnr"]["change"] is None
    assert document["times"]["arms"][NAME]["speedup"]["value"]["value"] == pytest.approx(1.6, abs=0.01)
    assert len(document["prompts"]) == COUNT


def test_large_pictures_are_shrunk_and_small_ones_untouched() -> None:
    import base64
    import io

    from PIL import Image

    large, small = Image.new("RGB", (1024, 512), "red"), Image.effect_noise((40, 30), 50).convert("RGB")
    for picture, size in ((large, (256, 128)), (small, (40, 30))):
        data = base64.b64decode(data_uri([picture]).partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == size
    assert Image.open(io.BytesIO(data)).tobytes() == small.tobytes()


def test_missing_libraries_are_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable() is None
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "needs jinja2: pip install 'hasten[report]'" in str(unavailable())
    monkeypatch.setenv("MPLBACKEND", "no such thing")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    assert "needs matplotlib, which does not load (ValueError: " in str(unavailable())


@pytest.mark.parametrize(
    "name", ["cost $a$ and $b$", r"\frac{a}{b}\g<1>\1", "$\\nothing$", "a&b<c>\"'", "ü" * 200]
)
def test_names_of_rows_and_metrics_are_drawn_as_they_are(document: dict[str, Any], name: str) -> None:
    """Not as formulas, and not as patterns."""
    text = json.dumps(document).replace(json.dumps(NAME)[1:-1], json.dumps(name)[1:-1])
    renamed = json.loads(text.replace('"psnr"', json.dumps(name)))
    with mpl.rc_context({"text.usetex": True}):  # a user's own configuration
        drawn = [pareto(renamed, name), timeline(renamed, name, 0)]
    for chart in drawn:
        texts = [html.unescape(found) for found in re.findall(r"<text [^>]*>(.*?)</text>", chart)]
        shown = "".join("".join(texts).split())
        assert "".join(name.split()) in shown
        assert html.unescape(re.search(r'aria-label="(.*?)"', chart)[1]).count(name) == 1  # type: ignore[index]
