"""The folder of an earlier comparison, damaged in every way: made again or refused with the remedy, never worse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten._errors import CheckpointError
from hasten.eval.compare.run import Request, run_comparison
from hasten.eval.compare.store import RunStore

from .conftest import make_request

ARM = "low resolution"
STEPS = "steps/low-resolution.json"


@pytest.fixture(scope="module")
def finished(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return run_comparison(pipe, request(), tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(finished: RunStore, tmp_path: Path) -> Path:
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


def request() -> Request:
    return make_request(2)


def edited(text: str, **changes: Any) -> str:
    return json.dumps({**json.loads(text), **changes})


def unsealed(text: str, **changes: Any) -> str:
    content = {**json.loads(text), **changes}
    content.pop("sha256")
    return json.dumps(content)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("run.json", lambda text: ""),
        ("run.json", lambda text: text[:-30]),
        ("run.json", lambda text: "[]"),
        ("run.json", lambda text: "{}"),
        ("run.json", lambda text: edited(text, flops={})),
        ("run.json", lambda text: unsealed(text, arms={})),
        ("run.json", lambda text: unsealed(text, arms=[3])),
        ("run.json", lambda text: unsealed(text, request=[])),
        ("records/rank-0.jsonl", lambda text: "[1]\n" + text),
        ("records/rank-0.jsonl", lambda text: '{"arm": "baseline"}\n' + text),
        ("records/rank-0.jsonl", lambda text: text.replace('"index": 1', '"index": "1"')),
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(
    folder: Path, file: str, change: Callable[[str], str]
) -> None:
    path = folder / file
    path.write_text(change(path.read_text()))
    with pytest.raises(CheckpointError, match=rf"{path.name}.*remove "):
        run_comparison(None, request(), folder)


def test_a_folder_of_an_earlier_version_goes_on(folder: Path) -> None:
    for file in ("run.json", STEPS):
        (folder / file).write_text(unsealed((folder / file).read_text()))
    run_comparison(None, request(), folder)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"steps": [], "sha256": "0"}'])
def test_what_the_techniques_did_is_measured_anew(
    pipe: Any, finished: RunStore, folder: Path, content: str | None
) -> None:
    (folder / STEPS).unlink()
    if content is not None:
        (folder / STEPS).write_text(content)
    pictures = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    found, expected = run_comparison(pipe, request(), folder).read_steps(ARM), finished.read_steps(ARM)
    assert found is not None
    assert expected is not None
    assert [step["resolution"] for step in found["steps"]] == [
        step["resolution"] for step in expected["steps"]
    ]
    assert pictures == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_pictures_that_are_damaged_or_not_ours_are_replaced(
    pipe: Any, finished: RunStore, folder: Path
) -> None:
    images = folder / "images"
    (images / "baseline" / "00001.png").write_bytes((images / "baseline" / "00001.png").read_bytes()[:-20])
    (images / "repeat" / "00000.png").unlink()
    (images / "repeat" / "00000").mkdir()  # of a video, where a picture comes
    records = folder / "records" / "rank-0.jsonl"
    strange = {**json.loads(records.read_text().splitlines()[0]), "arm": "unknown"}
    records.write_text(records.read_text() + json.dumps(strange) + "\n")
    store = run_comparison(pipe, request(), folder)
    expected = finished.records()
    assert {key: store.records()[key].sha256 for key in expected} == {
        k: r.sha256 for k, r in expected.items()
    }
    assert store.open_image("repeat", 0) == finished.open_image("repeat", 0)
    assert "unknown" not in (folder / "records.jsonl").read_text()
