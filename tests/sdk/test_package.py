"""The public surface: explicit, typed, documented, and light to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten._load import load

HEAVY = ("torch", "diffusers", "transformers", "triton", "pydantic", "rich", "pluggy")


def test_import_is_light() -> None:
    code = f"import sys, hasten; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_configuration_and_plans_load_no_model_code() -> None:
    code = (
        "import sys, hasten; hasten.Config.of([]); hasten.Technique; hasten.Plan; hasten.Acceleration;"
        "print([name for name in ('diffusers', 'transformers', 'triton') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", hasten.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(hasten, name)
    assert name in dir(hasten)
    if name == "__version__":
        assert value[0].isdigit()
    else:
        assert value.__doc__


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'acelerate'"):
        _ = hasten.acelerate  # type: ignore[attr-defined]


def test_library_is_silent_by_default() -> None:
    code = (
        "import logging, hasten; logging.getLogger('hasten').warning('unwanted');"
        "logging.getLogger('hasten._plugins').error('unwanted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_load_local_folder(sd3: Any, tmp_path: Path) -> None:
    components = {name: part for name, part in sd3.components.items() if name != "vae"}
    sd3.save_pretrained(tmp_path / "saved")
    loaded = hasten.load(tmp_path / "saved", **{k: v for k, v in components.items() if v is None})
    assert type(loaded) is type(sd3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-folder", "no folder here, no bundled miniature"),
        (Path("owner/name"), "there is no folder 'owner/name' here"),
        (".", r"has no model_index.json"),
    ],
)
def test_load_says_what_a_name_can_be(name: str | Path, message: str) -> None:
    with pytest.raises(hasten.UnsupportedError, match=message):
        load(name)


def test_hub_id_without_network_is_explained() -> None:
    code = (
        "import hasten\n"
        "try: hasten.load('hasten-tests/not-a-model', local_files_only=True)\n"
        "except hasten.UnsupportedError as error: print('explained:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"}
    )
    assert "explained: 'hasten-tests/not-a-model' is not a local folder" in done.stdout, done.stderr
    assert "Without a network" in done.stdout
