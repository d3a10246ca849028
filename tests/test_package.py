"""What is installed: every tracked file of the mapped folders, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "sdk": "hasten",
    "plugins": "hasten/plugins",
    "pipelines": "hasten/pipelines",
    "schedules": "hasten/schedules",
    "eval": "hasten/eval",
}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from the tracked files alone, so that leftovers of the working tree can't hide a gap."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_exactly_the_tracked_files(wheel: zipfile.ZipFile) -> None:
    expected = set()
    for name in tracked():
        folder, _, rest = name.partition("/")
        if folder in FOLDERS and rest and (ROOT / name).is_file():
            expected.add(f"{FOLDERS[folder]}/{rest}")
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_wheel_is_typed_and_licensed(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "hasten/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert not re.search(r"^Requires-Dist: (torchvision|xformers)(?!.*extra)", metadata, re.MULTILINE)


def test_constraints_pin_what_the_project_requires() -> None:
    pins = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    text = (ROOT / "pyproject.toml").read_text()
    required = re.findall(
        r'^    "([A-Za-z0-9_-]+)', text.split("dependencies = [")[1].split("]")[0], re.MULTILINE
    )
    assert {name for name in required if name not in pins} == set()
    assert pins["torch"] == "2.13.0"


@pytest.mark.parametrize("module", ["hasten", "hasten.eval", "hasten.pipelines.mini", "hasten.schedules"])
def test_importing_is_light(module: str) -> None:
    heavy = "diffusers", "transformers", "triton", "xformers", "torchvision", "matplotlib"
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_repository_holds_no_large_file() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in tracked() if (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > 10 * 2**20} == {}
