"""Every table fits a terminal of 80 columns, and no name or figure in it is cut."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.table import Table as RichTable
from typer.testing import CliRunner

import hasten.plugins.aptp.commands.tables as aptp
from hasten._cli import build_app
from hasten._console import Console, Table
from hasten._plugins import host
from hasten.eval.statistics import Estimate
from hasten.plugins.aptp.expert_times import Timed
from hasten.plugins.aptp.latency_table import LatencyTable, Row
from hasten.plugins.aptp.make.traffic import Traffic
from hasten.plugins.aptp.manifest import Manifest
from hasten.plugins.aptp.plugin import BUNDLES
from hasten.plugins.hack.bench import Measurement
from hasten.plugins.hack.commands import _table as cache_table

BUNDLE = BUNDLES / "t2i-unet"
LONG = "down_blocks.3.attentions.1.transformer_blocks.11.attn2.processor_with_a_long_name"


def check(text: str) -> None:
    """Nothing is wider than the terminal, and nothing is cut."""
    lines = text.splitlines()
    assert lines
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert "…" not in text
    assert "..." not in text.replace("mini/...", "")


TECHNIQUES = sorted(host().registry.techniques)
LINES = [
    ("plugins",),
    *(("plugins", name) for name in TECHNIQUES),
    ("eval", "doctor"),
    ("bench", "fid", "--features", "64", "--dimensions", "16"),
    ("bench", "images", "--pictures", "2", "--side", "16", "--workers", "1", "--rounds", "1"),
    ("bench", "attention", "--shape", "n4096", "--heads", "1", "--rounds", "1", "--device", "cpu"),
    ("aptp", "show", str(BUNDLE)),
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_what_a_command_prints(line: tuple[str, ...]) -> None:
    result = CliRunner().invoke(build_app(), list(line), env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    check(result.stdout)


def test_scores(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            side = (16 + number, 8 * number, 90 if folder == "a" else 99)
            Image.new("RGB", (200, 200), side).save(tmp_path / folder / f"{number}.png")
    given = ["eval", "--generated", str(tmp_path / "a"), "--baseline", str(tmp_path / "b")]
    env = {"COLUMNS": "80"}
    result = CliRunner().invoke(build_app(), [*given, "--metrics", "psnr,ssim,ms_ssim"], env=env)
    assert result.exit_code == 0, result.output
    check(result.stdout)


def manifest() -> Manifest:
    read = Manifest.read(BUNDLE)
    base = read.base.model_copy(update={"name": "/models/" + "a-folder-deep-down/" * 8})
    experts = tuple(
        e.model_copy(update={"macs": 6.74711e12, "parameters": 11_901_250_000, "traffic": 1.0})
        for e in read.experts
    )
    routes = tuple({"experts": [3] * 8, "macs_share": 0.91234, "traffic": 0.5} for _ in range(2))
    fields = read.model_copy(update={"base": base, "experts": experts}).model_dump(by_alias=True)
    return Manifest.model_validate({**fields, "routes": routes, "segments": [0.9 - i / 10 for i in range(7)]})


def latencies() -> LatencyTable:
    row = Row((16, 320, 640, 960, 1280), (0.1, 0.2, 1.123456, 2.2, 33.333))
    about = {"device": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"}
    return LatencyTable(None, 1234.5, {LONG: 12.5}, {f"{LONG}.{i}": row for i in range(2)}, about)  # type: ignore[arg-type]


TRAFFIC = Traffic("two different objects, with places", 512, tuple([0.125] * 9), 0.61234)
TIMED = [
    Timed(name, 0.70123, Estimate(1.0012, 0.9876, 1.0234, 9, 9, 0.01, 0.95, "pairs"), 123.4567)
    for name in ("base", "0")
]
SHOWN: dict[str, Callable[[], Any]] = {
    "aptp bench": lambda: aptp.show_times(TIMED),
    "aptp eval": lambda: aptp.show_traffic([TRAFFIC, TRAFFIC]),
    "aptp measure": lambda: aptp.show_latencies(latencies()),
    "aptp show, large": lambda: aptp.show_bundle(manifest()),
}


@pytest.mark.parametrize("name", SHOWN)
def test_large_figures_and_long_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    SHOWN[name]()
    check(capsys.readouterr().out)


def test_caches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    given = dict.fromkeys(Measurement.__dataclass_fields__, 0)
    given |= {"shape": "infinity-8b", "ratio": 0.9375, "layers": 40, "pictures": 16, "seconds": 1234.5}
    given |= dict.fromkeys(("peak_bytes", "formula_bytes", "reference_bytes"), 123_456_789_012)
    Console().print(cache_table([[Measurement(**given)]]))  # type: ignore[arg-type]
    check(capsys.readouterr().out)


def test_a_table_folds_texts_and_keeps_figures_whole() -> None:
    def drawn(kind: type[RichTable]) -> str:
        table = kind("name", title="a table")
        table.add_column("a figure", justify="right")
        table.add_row("x" * 100, "1.25x [1.20,1.31]")
        console = Console(file=(out := io.StringIO()), width=30)
        console.print(table)
        return out.getvalue()

    assert "…" in drawn(RichTable)
    assert "1.25x [1.20,1.31]" in drawn(Table)
    assert drawn(Table).count("x") == 101
