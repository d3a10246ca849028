"""The script of `make gpu` runs everything, survives a part that fails or hangs, and writes its page."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", FOLDER / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_part_that_fails_and_one_that_hangs_are_recorded(script: ModuleType) -> None:
    fails = script.run(script.Part("Fails", ("-c", "raise SystemExit('no such kernel')"), 1.0), 20)
    hangs = script.run(script.Part("Hangs", ("-c", "import time; time.sleep(60)"), 1.0), 1)
    works = script.run(script.Part("Works", ("-c", "print('told'); print('[{\"a\": 0.123456}]')"), 1.0), 20)
    assert [outcome.status for outcome in (fails, hangs, works)] == ["failed", "out of time", "passed"]
    page = script.page({"gpu": "Card", "torch": "2", "diffusers": "0"}, (fails, hangs, works))
    assert "Card" in page
    assert "no such kernel" in page
    assert "| a |\n| --- |\n| 0.1235 |" in page


def test_pipelines_of_flux_shape_are_timed_and_a_failing_variant_costs_no_other() -> None:
    command = [sys.executable, str(FOLDER / "gpu_flux.py"), "--device", "cpu", "--dtype", "float32", "--tiny"]
    command += ["--side", "128", "--steps", "6", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {row["variant"]: row.get("error") for row in rows} == dict.fromkeys(
        ["plain", "bottleneck", "cache", "rettention", "bottleneck + rettention", "bottleneck + cache"]
    )
    assert all(row["finite"] and row["seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_every_part_runs_in_small(script: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    subprocess.run(command, check=False, timeout=600)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["status"] for part in parts] == ["passed"] * 4
